// What the phases are written in: packs of any element type, and the loop over them.
#pragma once

#include <type_traits>

#include "cpu/simd/bfloat16.h"
#include "cpu/simd/float16.h"
#include "cpu/simd/requests.h"
#include "cpu/simd/vec.h"
#include "plan/partition.h"

namespace my_ops::cpu {
namespace {

template <class A>
MY_OPS_INLINE Vec<A> splat(A a) {
  return a - Vec<A>{};
}

/// A coefficient as it is; but for bfloat16, a NaN that survives the rounding (see rounded() in bfloat16.h).
template <class T, class A = Accumulator<T>>
MY_OPS_INLINE A quiet(A a) {
  if constexpr (std::is_same_v<T, bfloat16>) return a == a ? a : static_cast<A>(__builtin_nan(""));
  return a;
}

/// A coefficient for all values of a pack.
template <class T>
MY_OPS_INLINE Pack<T> broadcast(Accumulator<T> a) {
  const auto v = splat(quiet<T>(a));
  if constexpr (std::is_same_v<Pack<T>, Pair>) {
    return {v, v};
  } else {
    return v;
  }
}

// Packs in an array of the accumulation type lie in the order of their lanes, which for bfloat16 is not that of the
// values: to_lane_order() rearranges an array of values, to_value_order() does the reverse. n is rounded up to whole
// packs.

template <class T, class A = Accumulator<T>>
MY_OPS_INLINE Pack<T> get(const A* p) {
  if constexpr (std::is_same_v<Pack<T>, Pair>) {
    return {load(p, All{}, Vec<A>{}), load(p + kLanes<A>, All{}, Vec<A>{})};
  } else {
    return load(p, All{}, Vec<A>{});
  }
}
template <class T, class A = Accumulator<T>>
MY_OPS_INLINE void put(A* p, Pack<T> pack) {
  if constexpr (std::is_same_v<Pack<T>, Pair>) {
    store(p, All{}, pack.first);
    store(p + kLanes<A>, All{}, pack.second);
  } else {
    store(p, All{}, pack);
  }
}

template <class T>
MY_OPS_INLINE void to_lane_order(Accumulator<T>* p, int64_t n) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    constexpr int half = kLanes<float>;
    for (int64_t j = 0; j < n; j += 2 * half) {
      float lanes[2 * half];
      for (int i = 0; i < half; ++i) {
        lanes[i] = p[j + 2 * i];
        lanes[half + i] = p[j + 2 * i + 1];
      }
      std::memcpy(p + j, lanes, sizeof(lanes));
    }
  }
}
template <class T>
MY_OPS_INLINE void to_value_order(Accumulator<T>* p, int64_t n) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    constexpr int half = kLanes<float>;
    for (int64_t j = 0; j < n; j += 2 * half) {
      float values[2 * half];
      for (int i = 0; i < half; ++i) {
        values[2 * i] = p[j + i];
        values[2 * i + 1] = p[j + half + i];
      }
      std::memcpy(p + j, values, sizeof(values));
    }
  }
}

/// Accumulators side by side, four vectors in all, that hide the latency of the addition.
template <class T>
constexpr int kSlots = 4 * kLanes<Accumulator<T>> / kPack<T>;

template <class P, int n>
MY_OPS_INLINE P added(const P (&parts)[n]) {
  if constexpr (n == 4) {
    return (parts[0] + parts[1]) + (parts[2] + parts[3]);
  } else if constexpr (n == 2) {
    return parts[0] + parts[1];
  } else {
    static_assert(n == 1);
    return parts[0];
  }
}

template <class T>
MY_OPS_INLINE Vec<Accumulator<T>> join(const Pack<T> (&parts)[kSlots<T>]) {
  const Pack<T> total = added(parts);
  if constexpr (std::is_same_v<Pack<T>, Pair>) {
    return total.first + total.second;
  } else {
    return total;
  }
}

/// Elements before the first one at which a whole pack may be streamed.
template <class T>
MY_OPS_INLINE int64_t unaligned(const T* p) {
  constexpr auto bytes = sizeof(T) * kPack<T>;
  return static_cast<int64_t>((bytes - reinterpret_cast<uintptr_t>(p) % bytes) % bytes / sizeof(T));
}

template <class T>
MY_OPS_INLINE Pack<T> load(const T* p, Stream, Pack<T> fill) {
  return load(p, All{}, fill);
}

template <class Ahead = Near, class T, class Lanes>
MY_OPS_INLINE Pack<T> load_ahead(const T* p, Lanes lanes, Pack<T> fill) {
  Ahead::ask(reinterpret_cast<const char*>(p));
  return load(p, lanes, fill);
}

/// Stretches of memory that are walked together, each `apart` elements behind the one before. Several streams keep more
/// reads of memory under way than one does, and what belongs to their common position is loaded once for all.
template <int kCount>
struct SideBySide {
  static constexpr int count = kCount;
  int64_t apart;
  int64_t channels;  // from one to the next
};

/// How many to walk together in a pass that stores the Full way: a line of memory that is streamed in several pieces
/// must not have to wait for the rest of it while those of other stretches are written.
template <class T, class Full>
constexpr int64_t kTogether = std::is_same_v<Full, Stream> && sizeof(T) * kPack<T> < 64 ? 1 : plan::kSideBySide;

/// A coefficient for each of them.
template <class T, int kCount>
struct Broadcast {
  Pack<T> values[kCount];

  MY_OPS_INLINE Broadcast(const Accumulator<T>* per_channel, int64_t c, SideBySide<kCount> side) {
    for (int r = 0; r < kCount; ++r) values[r] = broadcast<T>(per_channel[c + r * side.channels]);
  }
  MY_OPS_INLINE Pack<T> operator[](int r) const { return values[r]; }
};

/// body(i, slot, lanes) for the packs of 0..n-1: i is a pack's first index, slot tells apart those that run side by
/// side, and lanes is Full (All or Stream) except for the first `head` elements and a last, incomplete pack. The one
/// remainder loop of all phases.
template <class T, class Full, int kUnrolled = kSlots<T>, class Body>
MY_OPS_INLINE void for_packs(int64_t head, int64_t n, Body body) {
  constexpr int64_t pack = kPack<T>;
  int64_t i = 0;
  if (head > 0) {
    i = head < n ? head : n;
    body(0, 1, First{i});
  }
  if constexpr (kUnrolled > 1) {
    for (; i + kUnrolled * pack <= n; i += kUnrolled * pack) {
      MY_OPS_UNROLLED for (int slot = 0; slot < kUnrolled; ++slot) body(i + slot * pack, slot, Full{});
    }
  }
  for (; i + pack <= n; i += pack) body(i, 0, Full{});
  if (i < n) body(i, 1, First{n - i});
}

template <class T, class Body>
MY_OPS_INLINE void for_packs(int64_t n, Body body) {
  for_packs<T, All>(0, n, body);
}

/// A scalar of any element type in its accumulation type.
MY_OPS_INLINE double widened(double x) { return x; }
MY_OPS_INLINE float widened(float x) { return x; }
MY_OPS_INLINE float widened(bfloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
MY_OPS_INLINE float widened(float16 x) { return widen(Halves{} + x.bits)[0]; }

/// `stride` apart in memory, side by side in `out`, which has room for whole packs.
template <class T>
MY_OPS_INLINE void widen_values(const T* p, int64_t stride, int64_t n, Accumulator<T>* out) {
  if (stride == 1) {
    for_packs<T>(n, [&](int64_t i, int, auto lanes) { put<T>(out + i, load(p + i, lanes, Pack<T>{})); });
    to_value_order<T>(out, n);
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = widened(p[i * stride]);
  }
}

/// Each lane rounded to what T holds.
template <class T, class A = Accumulator<T>>
MY_OPS_INLINE Vec<A> nearest(Vec<A> v) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return bit_cast<Vec<A>>(rounded(v) & 0xffff0000);
  } else if constexpr (std::is_same_v<T, float16>) {
    return widen(narrow(v));
  } else {
    return v;
  }
}

}  // namespace
}  // namespace my_ops::cpu
