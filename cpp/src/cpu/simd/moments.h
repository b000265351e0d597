// One-pass statistics with a pivot: with d = x - pivot, mean = pivot + sum(d)/n and M2 = sum(d^2) - sum(d)^2/n.
//
// The subtraction cancels only if |mean - pivot| is large against the standard deviation. The pivot is the mean of a
// few values spread over the region, so that is rare; where it happens (images with large uniform areas), the channel
// is read again with the mean just found as its pivot, while it is in the cache.
#pragma once

#include <cmath>

#include "cpu/simd/runs.h"
#include "cpu/simd/vec.h"

namespace my_ops::cpu {
namespace {

/// sum(x - pivot) and sum((x - pivot)^2) per channel of a region.
struct ShiftedSums {
  double* first;
  double* second;
};

/// A value for each channel of a region, with room for whole packs.
template <class T>
using ChannelArray = Accumulator<T>[plan::kMaxColumns + kPack<T>];

/// Samples per channel and region. Few: an outlier among them must move the pivot far enough to be noticed.
constexpr int64_t kSamples = 8;

/// The pivot of each channel of the region: the mean of samples, x0 + sum(xi - x0) / samples, which is exact for
/// constant channels; 0 where that is not finite. Rounded to the element type: a pivot with more bits than the values
/// would give every difference the same low bits, whose roundings add up instead of cancelling.
template <class T, class A = Accumulator<T>>
void choose_pivots(const T* x, const plan::Shape& shape, const plan::Region& region, A* pivot) {
  const int64_t channels = region.c1 - region.c0;
  const bool channels_last = shape.layout == plan::Layout::channels_last;
  const int64_t values = region.e - region.b;
  const int64_t samples = values < kSamples ? values : kSamples;
  const auto sample = [&](int64_t i, A* out) {
    const int64_t v = region.b + i * values / samples;
    const T* first =
        channels_last ? x + v * shape.c + region.c0 : x + (v / shape.s * shape.c + region.c0) * shape.s + v % shape.s;
    widen_values(first, channels_last ? 1 : shape.s, channels, out);
  };
  ChannelArray<T> x0;
  ChannelArray<T> xi;
  sample(0, x0);
  for (int64_t c = 0; c < channels; ++c) pivot[c] = A(0);
  for (int64_t i = 1; i < samples; ++i) {
    sample(i, xi);
    for (int64_t c = 0; c < channels; ++c) pivot[c] += xi[c] - x0[c];
  }
  const Vec<A> per_sample = splat(A(1) / static_cast<A>(samples));
  for (int64_t c = 0; c < channels; c += kLanes<A>) {
    const Vec<A> mean = nearest<T>(load(x0 + c, All{}, Vec<A>{}) + load(pivot + c, All{}, Vec<A>{}) * per_sample);
    store(pivot + c, All{}, mean - mean == Vec<A>{} ? mean : Vec<A>{});
  }
}

/// body(value as double) for all values of channel c in the region.
template <class T, class Body>
MY_OPS_INLINE void for_values(const T* x, const plan::Shape& shape, const plan::Region& region, int64_t c, Body body) {
  if (shape.layout == plan::Layout::channels_last) {
    for (int64_t v = region.b; v < region.e; ++v) body(widened(x[v * shape.c + c]));
    return;
  }
  for_stretches<T>(shape, c, region.b, region.e, [&](int64_t element, auto side, int64_t length) {
    for (int r = 0; r < side.count; ++r) {
      for (int64_t i = 0; i < length; ++i) body(widened(x[element + r * side.apart + i]));
    }
  });
}

/// A sum that keeps what its additions round off (Neumaier): its error does not grow with the number of values.
struct CompensatedSum {
  double sum = 0;
  double rest = 0;

  MY_OPS_INLINE void add(double value) {
    const double next = sum + value;
    const bool larger = std::fabs(sum) >= std::fabs(value);
    rest += larger ? (sum - next) + value : (value - next) + sum;
    sum = next;
  }
  MY_OPS_INLINE double value() const { return rest - rest == 0 ? sum + rest : sum; }
};

/// Two passes in double; also for values whose squares exceed float32.
template <class T>
__attribute__((noinline)) void moments_in_double(const T* x, const plan::Shape& shape, const plan::Region& region,
                                                 int64_t c, double* mean, double* m2) {
  const auto n = static_cast<double>(region.e - region.b);
  CompensatedSum total;
  for_values(x, shape, region, c, [&](double value) { total.add(value); });
  const double center = total.value() / n;
  CompensatedSum first;
  CompensatedSum second;
  for_values(x, shape, region, c, [&](double value) {
    const double d = value - center;
    first.add(d);
    second.add(d * d);
  });
  const bool finite = center - center == 0;
  *mean = finite ? center + first.value() / n : center;
  *m2 = second.value() - (finite ? first.value() * first.value() / n : 0);
}

/// (mean - pivot)^2 <= 3 * variance bounds the cancellation to two bits. False for NaN and infinity.
MY_OPS_INLINE bool is_accurate(double first, double n, double m2) {
  return first * first <= 3 * n * m2 && m2 - m2 == 0;
}

/// Three deviations from the mean, or more: one of the samples was an outlier.
MY_OPS_INLINE bool pivot_is_outlier(double first, double n, double m2) { return first * first > 10 * n * m2; }

/// From sums to moments, for the channels of a region. Returns how many are not accurate.
template <class A>
int64_t moments_of(const plan::Region& region, const A* pivot, ShiftedSums sums, double* mean, double* m2) {
  const auto n = static_cast<double>(region.e - region.b);
  const double per_value = 1 / n;
  int64_t inaccurate = 0;
#pragma GCC ivdep
  for (int64_t i = 0; i < region.c1 - region.c0; ++i) {
    const double shift = sums.first[i] * per_value;
    mean[i] = pivot[i] + shift;
    m2[i] = sums.second[i] - sums.first[i] * shift;
    inaccurate += is_accurate(sums.first[i], n, m2[i]) ? 0 : 1;
  }
  return inaccurate;
}

}  // namespace
}  // namespace my_ops::cpu
