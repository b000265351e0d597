// Facts about the loaded library, for tools and bug reports.
#pragma once

#include <string>

namespace my_ops {

/// The instruction set in use by the CPU kernels: "default", "avx2" or "avx512".
std::string cpu_capability();

/// JSON object with version, torch, cuda (null for a CPU build), compiler and cpu_capability.
std::string build_info();

}  // namespace my_ops
