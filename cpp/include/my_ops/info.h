// Facts about the loaded library, for tools and bug reports.
#pragma once

#include <string>

#include "my_ops/version.h"

#pragma GCC visibility push(default)
namespace my_ops {

/// The instruction set in use by the CPU kernels: "default", "avx2" or "avx512".
std::string cpu_capability();

/// JSON object with version, torch, cuda (null for a CPU build), compiler, cpu_capability, last_level_cache (bytes) and
/// cached_bytes: what a pass may read and write in all before its result is written past that cache.
std::string build_info();

}  // namespace my_ops
#pragma GCC visibility pop
