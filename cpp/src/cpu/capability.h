// Which instruction set the CPU kernels use.
#pragma once

#include "cpu/kernels.h"

namespace my_ops::cpu {

enum class Capability { base, avx2, avx512 };

/// The best that this machine has, or what the environment variable MY_OPS_CPU_CAPABILITY (default, avx2, avx512)
/// allows if that is less. Decided at the first call.
Capability capability();

/// "default", "avx2" or "avx512".
const char* name(Capability capability);

/// The kernels for capability().
const KernelTable& kernel_table();

}  // namespace my_ops::cpu
