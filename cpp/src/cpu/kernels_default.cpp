// The phases for the baseline of the architecture.
#include "cpu/simd/phases.h"

namespace my_ops::cpu {

const KernelTable& kernels_default() {
  static constexpr KernelTable table = make_table();
  return table;
}

}  // namespace my_ops::cpu
