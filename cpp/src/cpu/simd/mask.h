// A bit per element, in memory order: element i is bit i % 8 of byte i / 8. Packs that fill whole bytes, nearly all,
// are written as such; where a byte belongs to more than one pack, perhaps of another thread, its bits are joined to
// what is there, which starts out as zeros.
#pragma once

#include "cpu/simd/packs.h"

namespace my_ops::cpu {
namespace {

template <class T>
MY_OPS_INLINE int64_t values_of(First first) {
  return first.n;
}
template <class T, class Full>
MY_OPS_INLINE int64_t values_of(Full) {
  return kPack<T>;
}

template <class T, class Lanes>
constexpr bool kWholeBytes = kPack<T> % 8 == 0 && !std::is_same_v<Lanes, First>;

/// Bits i..i+n-1 of the mask, n <= 32, and perhaps others above them.
__attribute__((noinline)) inline uint32_t read_some(const uint8_t* mask, int64_t i, int64_t n) {
  const int64_t skipped = i % 8;
  uint64_t bits = 0;
  for (int64_t b = 0; b < (skipped + n + 7) / 8; ++b) bits |= static_cast<uint64_t>(mask[i / 8 + b]) << (8 * b);
  return static_cast<uint32_t>(bits >> skipped);
}

__attribute__((noinline)) inline void write_some(uint8_t* mask, int64_t i, int64_t n, uint32_t bits) {
  const int64_t skipped = i % 8;
  const uint64_t wanted = (bits & ((uint64_t{1} << n) - 1)) << skipped;
  for (int64_t b = 0; b < (skipped + n + 7) / 8; ++b) {
    __atomic_fetch_or(mask + i / 8 + b, static_cast<uint8_t>(wanted >> (8 * b)), __ATOMIC_RELAXED);
  }
}

/// The bits of the pack of element i, and perhaps others above them.
template <class T, class Lanes>
MY_OPS_INLINE uint32_t read_bits(const uint8_t* mask, int64_t i, Lanes lanes) {
  if constexpr (kWholeBytes<T, Lanes>) {
    if (i % 8 == 0) {
      uint32_t bits = 0;
      std::memcpy(&bits, mask + i / 8, kPack<T> / 8);
      return bits;
    }
  }
  return read_some(mask, i, values_of<T>(lanes));
}

/// Sets the bits of the pack of element i, which were 0.
template <class T, class Lanes>
MY_OPS_INLINE void write_bits(uint8_t* mask, int64_t i, Lanes lanes, uint32_t bits) {
  if constexpr (kWholeBytes<T, Lanes>) {
    if (i % 8 == 0) {
      std::memcpy(mask + i / 8, &bits, kPack<T> / 8);
      return;
    }
  }
  write_some(mask, i, values_of<T>(lanes), bits);
}

/// Bit j: lane j is positive.
template <class A>
MY_OPS_INLINE uint32_t positive_lanes(Vec<A> v) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<A, float>) {
    return _mm512_cmp_ps_mask(v, Vec<A>{}, _CMP_GT_OQ);
  } else {
    return _mm512_cmp_pd_mask(v, Vec<A>{}, _CMP_GT_OQ);
  }
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<A, float>) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, Vec<A>{}, _CMP_GT_OQ)));
  } else {
    return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd(v, Vec<A>{}, _CMP_GT_OQ)));
  }
#else
  uint32_t bits = 0;
  for (int j = 0; j < kLanes<A>; ++j) bits |= (v[j] > A(0) ? 1u : 0u) << j;
  return bits;
#endif
}

/// Bit j of the lower half to bit 2*j.
MY_OPS_INLINE uint32_t spread(uint32_t bits) {
  bits = (bits | bits << 8) & 0x00ff00ff;
  bits = (bits | bits << 4) & 0x0f0f0f0f;
  bits = (bits | bits << 2) & 0x33333333;
  return (bits | bits << 1) & 0x55555555;
}

/// Which value a lane of a pair is: lane j of the first vector is value j * kLaneStep, and lane j of the second one is
/// kSecondLane values further.
template <class T>
constexpr int kLaneStep = std::is_same_v<T, bfloat16> ? 2 : 1;
template <class T>
constexpr int kSecondLane = std::is_same_v<T, bfloat16> ? 1 : kLanes<float>;

/// Bit j: value j of the pack is positive.
template <class T>
MY_OPS_INLINE uint32_t positive_values(Pack<T> pack) {
  if constexpr (std::is_same_v<Pack<T>, Pair>) {
    const uint32_t first = positive_lanes<float>(pack.first);
    const uint32_t second = positive_lanes<float>(pack.second);
    if constexpr (kLaneStep<T> == 2) return spread(first) | spread(second) << 1;
    return first | second << kSecondLane<T>;
  } else {
    return positive_lanes<Accumulator<T>>(pack);
  }
}

/// Lane j from `set` if bit j * step + first is set, else from `unset`.
template <class A, int first = 0, int step = 1>
MY_OPS_INLINE Vec<A> choose(uint32_t bits, Vec<A> set, Vec<A> unset) {
  using Integer = std::conditional_t<sizeof(A) == 8, uint64_t, uint32_t>;
  Vec<Integer> own{};
  for (int j = 0; j < kLanes<A>; ++j) own[j] = Integer{1} << (j * step + first);
  return ((Vec<Integer>{} + Integer{bits}) & own) != 0 ? set : unset;
}

}  // namespace
}  // namespace my_ops::cpu
