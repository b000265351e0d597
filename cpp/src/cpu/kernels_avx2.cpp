// The phases for AVX2, FMA and F16C.
#include "cpu/simd/phases.h"

namespace my_ops::cpu {

const KernelTable& kernels_avx2() {
  static constexpr KernelTable table = make_table();
  return table;
}

}  // namespace my_ops::cpu
