#include "cpu/elements.h"

#include <sys/mman.h>
#include <unistd.h>

#include "cpu/last_level_cache.h"

namespace my_ops::cpu {
namespace {

/// malloc serves blocks above 32 MB, and often smaller ones, with fresh pages. The first touch of a page is a fault:
/// for every 4 KiB it costs several times what batch norm does with them, and little for every 2 MiB. Where the system
/// gives huge pages to those who ask (transparent_hugepage: madvise), this asks; elsewhere it changes nothing.
void ask_for_huge_pages(const at::Tensor& fresh) {
#if defined(MADV_HUGEPAGE)
  constexpr size_t kLarge = size_t{8} << 20;
  if (fresh.nbytes() < kLarge) return;
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(fresh.mutable_data_ptr());
  const uintptr_t begin = (address + page - 1) / page * page;
  const uintptr_t end = (address + fresh.nbytes()) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace

at::Tensor empty_image(const at::Tensor& like) {
  at::Tensor image = at::detail::empty_strided_cpu(like.sizes(), like.strides(), like.scalar_type());
  ask_for_huge_pages(image);
  return image;
}

int64_t cached_bytes() {
  static const auto bytes = static_cast<int64_t>(kernel_table().cache_share * static_cast<double>(last_level_cache()));
  return bytes;
}

bool streams(const at::Tensor& output, std::initializer_list<const void*> read) {
  int64_t images = 1;
  for (const void* image : read) {
    if (image == output.const_data_ptr()) return false;
    if (image != nullptr) ++images;
  }
  return images * static_cast<int64_t>(output.nbytes()) > cached_bytes();
}

}  // namespace my_ops::cpu
