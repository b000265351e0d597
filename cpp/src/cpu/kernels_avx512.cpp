// The phases for AVX-512 (F, BW, DQ, VL).
#include "cpu/simd/phases.h"

namespace my_ops::cpu {

const KernelTable& kernels_avx512() {
  static constexpr KernelTable table = make_table();
  return table;
}

}  // namespace my_ops::cpu
