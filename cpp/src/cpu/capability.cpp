#include "cpu/capability.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>

namespace my_ops::cpu {
namespace {

Capability of_machine() {
#if defined(MY_OPS_WITH_AVX2)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (!avx2) return Capability::base;
#if defined(MY_OPS_WITH_AVX512)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) return Capability::avx512;
#endif
  return Capability::avx2;
#endif
  return Capability::base;
}

Capability allowed() {
  const char* wish = std::getenv("MY_OPS_CPU_CAPABILITY");
  if (!wish) return Capability::avx512;
  for (const auto capability : {Capability::base, Capability::avx2, Capability::avx512}) {
    if (std::string_view(wish) == name(capability)) return capability;
  }
  TORCH_CHECK(false, "my_ops: expected MY_OPS_CPU_CAPABILITY to be default, avx2 or avx512, got ", wish);
}

}  // namespace

Capability capability() {
  static const Capability chosen = std::min(of_machine(), allowed());
  return chosen;
}

const char* name(Capability capability) {
  switch (capability) {
    case Capability::avx512:
      return "avx512";
    case Capability::avx2:
      return "avx2";
    default:
      return "default";
  }
}

const KernelTable& kernel_table() {
  switch (capability()) {
#if defined(MY_OPS_WITH_AVX512)
    case Capability::avx512:
      return __builtin_cpu_is("intel") ? kernels_avx512_intel() : kernels_avx512();
#endif
#if defined(MY_OPS_WITH_AVX2)
    case Capability::avx2:
      return kernels_avx2();
#endif
    default:
      return kernels_default();
  }
}

}  // namespace my_ops::cpu
