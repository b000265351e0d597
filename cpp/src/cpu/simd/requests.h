// What the caches are asked for before it is needed, and from how many places at a time. What suits one maker's
// processors does not suit another's, so kernels_avx512_intel.cpp defines MY_OPS_FOR_INTEL. The bits are the same.
//
// Of itself a core begins its prefetching anew in every 4 KiB page, hence the requests. Measured on an Ice Lake Xeon
// (L1 of 48 KB, 12 ways) and on a Zen 4 EPYC (32 KB, 8 ways), both with two cores: what the one's L1 is asked for, 768
// bytes ahead of several runs, pushes out of the other's what is about to be read. There the L2 is asked, for large
// tensors.
#pragma once

#include <type_traits>

#include "cpu/simd/vec.h"
#include "plan/shape.h"

namespace my_ops::cpu {
namespace {

#if defined(MY_OPS_FOR_INTEL)
constexpr bool kForIntel = true;
#else
constexpr bool kForIntel = false;
#endif

constexpr int64_t kAheadInL1 = kForIntel ? 768 : 0;  // bytes; 0: the L1 is asked for nothing

/// The baseline's vectors would ask for each line four times.
constexpr int64_t kAheadInL2 = kForIntel || kVecBytes == 16 ? 0 : 2048;  // bytes; 0: neither is the L2

constexpr int64_t kLarge = int64_t{8} << 20;  // bytes of a tensor that is taken to be in memory, not in a cache

/// Of the last-level cache. On the Xeon copies of 3 MB already ran at the speed of memory.
constexpr double kCacheShare = kForIntel ? 0.5 : 1.0;

/// A store asks for its line of memory when its turn comes, after all that was before it; or while its value is
/// computed.
constexpr bool kAskForResults = kForIntel;

/// Whether maps walk an image that has long runs in several parts together.
constexpr bool kImageInParts = kForIntel;

// Whom a load asks for what the next loads will read. That follows in memory, perhaps beyond the tensor.

struct Near {
  MY_OPS_INLINE static void ask(const char* p) {
    if constexpr (kAheadInL1 > 0) __builtin_prefetch(p + kAheadInL1);
  }
};

struct Far {
  MY_OPS_INLINE static void ask(const char* p) { __builtin_prefetch(p + kAheadInL2, 0, 2); }
};

/// use(Near or Far) for reading all of a tensor of T.
template <class T, class Use>
MY_OPS_INLINE void with_ahead(const plan::Shape& shape, Use use) {
  if constexpr (kAheadInL2 > 0) {
    if (shape.n * shape.c * shape.s * static_cast<int64_t>(sizeof(T)) > kLarge) return use(Far{});
  }
  use(Near{});
}

/// For a map of two tensors by rows that stores the Full way: those of a result that is streamed are large.
template <class Full>
using AheadOfTwo = std::conditional_t<kAheadInL2 != 0 && std::is_same_v<Full, Stream>, Far, Near>;

MY_OPS_INLINE void ask_for_result(const void* p) {
  if constexpr (kAskForResults) __builtin_prefetch(p);
}

}  // namespace
}  // namespace my_ops::cpu
