#include "cpu/elements.h"

#include <unistd.h>

namespace my_ops::cpu {

bool streams(const at::Tensor& output) {
  static const int64_t last_level = [] {
#if defined(_SC_LEVEL3_CACHE_SIZE)
    const int64_t bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (bytes > 0) return bytes;
#endif
    return int64_t{32} << 20;
  }();
  return static_cast<int64_t>(output.nbytes()) > last_level / 4;
}

}  // namespace my_ops::cpu
