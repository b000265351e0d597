// A region seen as runs: stretches of one channel that lie side by side in a contiguous tensor.
#pragma once

#include "cpu/simd/vec.h"
#include "plan/partition.h"

namespace my_ops::cpu {
namespace {

/// body(element, length) for the stretches of channel c0 that make up its values v..end-1, in memory order. The stretch
/// of the next channel of the same image lies S elements behind.
template <class Body>
MY_OPS_INLINE void for_stretches(const plan::Shape& shape, int64_t c0, int64_t v, int64_t end, Body body) {
  int64_t image = v / shape.s;
  int64_t position = v % shape.s;
  while (v < end) {
    const int64_t rest = shape.s - position;
    const int64_t length = rest < end - v ? rest : end - v;
    body((image * shape.c + c0) * shape.s + position, length);
    v += length;
    position = 0;
    ++image;
  }
}

/// Values of one channel that are summed in float32 before the sum goes on in double: 64 to 256 terms per lane.
constexpr int64_t kBlockValues = 4096;

/// Two sums per channel of a region: vectors in the accumulation type within a block, doubles beyond.
template <class A>
struct RunSums {
  Vec<A> first[plan::kMaxRunGroup];
  Vec<A> second[plan::kMaxRunGroup];

  /// add(c, element, length, first, second) adds a stretch of the region's c-th channel; totals: [channels] each.
  template <class Add>
  MY_OPS_INLINE void run(const plan::Shape& shape, const plan::Region& region, double* first_total,
                         double* second_total, Add add) {
    const int64_t channels = region.c1 - region.c0;
    const int64_t step = shape.s < kBlockValues ? kBlockValues / shape.s * shape.s : kBlockValues;
    for (int64_t c = 0; c < channels; ++c) first_total[c] = second_total[c] = 0;
    for (int64_t v = region.b; v < region.e; v += step) {
      for (int64_t c = 0; c < channels; ++c) first[c] = second[c] = Vec<A>{};
      const int64_t end = region.e - v < step ? region.e : v + step;
      for_stretches(shape, region.c0, v, end, [&](int64_t element, int64_t length) {
        for (int64_t c = 0; c < channels; ++c) add(c, element + c * shape.s, length, first[c], second[c]);
      });
      for (int64_t c = 0; c < channels; ++c) {
        first_total[c] += sum<A>(first[c]);
        second_total[c] += sum<A>(second[c]);
      }
    }
  }
};

/// Four accumulators side by side hide the latency of the addition.
template <class A>
MY_OPS_INLINE Vec<A> join(const Vec<A> (&parts)[4]) {
  return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

}  // namespace
}  // namespace my_ops::cpu
