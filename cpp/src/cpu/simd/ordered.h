// A region of a contiguous tensor with short runs, walked in memory order. Most packs hold values of one channel, whose
// coefficients stay in registers; a pack that holds the end of one run and the beginning of the next one takes some
// lanes of either's. No pack but a piece's first and last is incomplete.
#pragma once

#include "cpu/simd/maps.h"
#include "cpu/simd/mask.h"
#include "plan/partition.h"

namespace my_ops::cpu {
namespace {

/// a for the first n values of a pack, b for the others.
template <class T>
MY_OPS_INLINE Pack<T> of_two(int64_t n, Pack<T> a, Pack<T> b) {
  const auto bits = static_cast<uint32_t>((uint64_t{1} << n) - 1);
  if constexpr (std::is_same_v<Pack<T>, Pair>) {
    return {choose<float, 0, kLaneStep<T>>(bits, a.first, b.first),
            choose<float, kSecondLane<T>, kLaneStep<T>>(bits, a.second, b.second)};
  } else {
    return choose<Accumulator<T>>(bits, a, b);
  }
}

/// The coefficients of the values of a pack, of each of `count` vectors [C].
template <class T, int count>
struct Coefficients {
  Pack<T> of[count];
};

/// body(element, lanes, coefficients) for the packs of a region that is to be written to `out`.
template <class Full, class T, int count, class Body, class A = Accumulator<T>>
MY_OPS_INLINE void for_packs_in_order(const Shape& shape, const Region& region, const T* out,
                                      const A* const (&vectors)[count], Body body) {
  constexpr int64_t pack = kPack<T>;
  static_assert(pack * sizeof(T) <= plan::kOrderedRun, "a pack would hold values of three channels");
  const int64_t image = shape.c * shape.s;
  const int64_t channels = region.c1 - region.c0;
  const int64_t images = (region.e - region.b) / shape.s;
  const int64_t pieces = channels == shape.c ? 1 : images;
  const int64_t runs = images * channels / pieces;
  const auto of_channel = [&](int64_t c) {
    Coefficients<T, count> k;
    for (int i = 0; i < count; ++i) k.of[i] = broadcast<T>(vectors[i][c]);
    return k;
  };
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t first = (region.b / shape.s + piece) * image + region.c0 * shape.s;
    const int64_t n = runs * shape.s;
    int64_t c = region.c0;
    Coefficients<T, count> k = of_channel(c);
    int64_t i = head<Full>(out + first);
    if (i > 0) body(first, First{i}, k);
    for (int64_t end = shape.s; end <= n; end += shape.s) {
      for (; i + pack <= end; i += pack) body(first + i, Full{}, k);
      c = c + 1 < region.c1 ? c + 1 : region.c0;
      const Coefficients<T, count> next = of_channel(c);
      if (i < end && end < n) {
        Coefficients<T, count> both;
        for (int j = 0; j < count; ++j) both.of[j] = of_two<T>(end - i, k.of[j], next.of[j]);
        body(first + i, Full{}, both);
        i += pack;
      } else if (i < end) {
        body(first + i, First{end - i}, k);
      }
      k = next;
    }
  }
}

}  // namespace
}  // namespace my_ops::cpu
