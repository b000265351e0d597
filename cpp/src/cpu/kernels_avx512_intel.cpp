// The phases for AVX-512 (F, BW, DQ, VL), with the requests for memory that suit Intel's processors.
#define MY_OPS_FOR_INTEL
#include "cpu/simd/phases.h"

namespace my_ops::cpu {

const KernelTable& kernels_avx512_intel() {
  static constexpr KernelTable table = make_table();
  return table;
}

}  // namespace my_ops::cpu
