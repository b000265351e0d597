// A region seen as runs: stretches of one channel that lie side by side in a contiguous tensor.
#pragma once

#include "cpu/simd/packs.h"
#include "plan/partition.h"

namespace my_ops::cpu {
namespace {

/// A stretch of more values than this is walked in parts side by side: each then fills pages of its own.
constexpr int64_t kLongStretch = 8192;

/// body(element, SideBySide, length) for the stretches of channel c0 that make up its values v..end-1: those of several
/// images side by side where there are enough of them, and parts of a long one if they are to go together. The stretch
/// of the next channel of the same image lies S elements behind.
template <class T, int64_t many = plan::kSideBySide, class Body>
MY_OPS_INLINE void for_stretches(const plan::Shape& shape, int64_t c0, int64_t v, int64_t end, Body body,
                                 bool parts_together = true) {
  const int64_t image = shape.c * shape.s;
  const bool aligned = many > 1 && image % kPack<T> == 0;
  if (aligned && v % shape.s == 0) {
    const int64_t part = (end - v) / shape.s / many;
    const int64_t first = v / shape.s * image + c0 * shape.s;
    for (int64_t i = 0; i < part; ++i) body(first + i * image, SideBySide<many>{part * image, 0}, shape.s);
    v += part * many * shape.s;
  }
  while (v < end) {
    const int64_t position = v % shape.s;
    const int64_t length = shape.s - position < end - v ? shape.s - position : end - v;
    const int64_t element = v / shape.s * image + c0 * shape.s + position;
    const int64_t part = many > 1 && parts_together && length > kLongStretch ? length / (many * kPack<T>)*kPack<T> : 0;
    if (part > 0) body(element, SideBySide<many>{part, 0}, part);
    if (many * part < length) body(element + many * part, SideBySide<1>{0, 0}, length - many * part);
    v += length;
  }
}

/// body(c, element, SideBySide, length) for the stretches of all channels of a region, to be mapped: those of several
/// channels side by side where it has few images.
template <class T, int64_t many, class Body>
MY_OPS_INLINE void for_all_stretches(const plan::Shape& shape, const plan::Region& region, Body body) {
  const int64_t part = (region.c1 - region.c0) / many;
  const bool together = kImageInParts || shape.s < plan::kShortRun;
  const bool aligned = many > 1 && together && part * shape.s % kPack<T> == 0;
  for_stretches<T, many>(
      shape, region.c0, region.b, region.e,
      [&](int64_t first, auto side, int64_t length) {
        int64_t c = region.c0;
        if constexpr (side.count == 1) {
          for (; aligned && c < region.c0 + part; ++c) {
            body(c, first + (c - region.c0) * shape.s, SideBySide<many>{part * shape.s, part}, length);
          }
          if (aligned) c = region.c0 + many * part;
        }
        for (; c < region.c1; ++c) body(c, first + (c - region.c0) * shape.s, side, length);
      },
      together);
}

/// Two sums per channel of a region: vectors in the accumulation type within a block, doubles beyond.
template <class T, int64_t many = plan::kSideBySide, class A = Accumulator<T>>
struct RunSums {
  /// Values of one channel that are summed in the accumulation type before the sum goes on in double: 64 terms in each
  /// lane of `many` vectors, which is how a loop that walks `many` stretches adds.
  static constexpr int64_t kBlockValues = 64 * many * kLanes<A>;

  Vec<A> first[plan::kMaxRunGroup];
  Vec<A> second[plan::kMaxRunGroup];

  /// add(c, element, side, length, first, second) adds stretches of the region's c-th channel; totals: [channels] each.
  template <class Add>
  MY_OPS_INLINE void run(const plan::Shape& shape, const plan::Region& region, double* first_total,
                         double* second_total, Add add) {
    const int64_t channels = region.c1 - region.c0;
    int64_t values = 0;
    for (int64_t c = 0; c < channels; ++c) {
      first[c] = second[c] = Vec<A>{};
      first_total[c] = second_total[c] = 0;
    }
    const auto flush = [&] {
      for (int64_t c = 0; c < channels; ++c) {
        first_total[c] += sum<A>(first[c]);
        second_total[c] += sum<A>(second[c]);
        first[c] = second[c] = Vec<A>{};
      }
      values = 0;
    };
    for_stretches<T, many>(shape, region.c0, region.b, region.e, [&](int64_t element, auto side, int64_t length) {
      constexpr int64_t block = kBlockValues / side.count;
      for (int64_t p = 0; p < length; p += block) {
        const int64_t n = length - p < block ? length - p : block;
        for (int64_t c = 0; c < channels; ++c) add(c, element + c * shape.s + p, side, n, first[c], second[c]);
        values += n * side.count;
        if (values >= kBlockValues) flush();
      }
    });
    flush();
  }
};

}  // namespace
}  // namespace my_ops::cpu
