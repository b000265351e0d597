// How much of memory a cache can hold.
#pragma once

#include <cstdint>
#include <string>

namespace my_ops::cpu {

/// Bytes of the last cache before memory, of level 3 or higher, as one core sees it. `folder`: what Linux tells of the
/// caches of a core. glibc has been seen to tell ten times as much (an EPYC), so it is asked only where Linux knows
/// none; where both do not it is 32 MiB, as some virtual machines hide the one they have.
int64_t last_level_cache(const std::string& folder = "/sys/devices/system/cpu/cpu0/cache");

}  // namespace my_ops::cpu
