// How much of memory a cache can hold.
#pragma once

#include <cstdint>
#include <string>

namespace my_ops::cpu {

/// Bytes of the last cache before memory, as one core sees it. `folder`: what Linux tells of the caches of a core.
/// glibc tells the sum of all caches of that level in the machine on some processors, so it is asked only where there
/// is no such folder; where both know nothing it is 32 MiB.
int64_t last_level_cache(const std::string& folder = "/sys/devices/system/cpu/cpu0/cache");

}  // namespace my_ops::cpu
