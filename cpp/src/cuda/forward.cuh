// Forward: its reduction, its conclusions and its map (operation.cuh).
//
// One pass over x with a pivot: with d = x - pivot, mean = pivot + sum(d)/n and M2 = sum(d^2) - sum(d)^2/n. The
// subtraction cancels only if |mean - pivot| is large against the standard deviation. The pivot is the mean of a few
// values spread over the tile, so that is rare: where it happens, the channel of the tile is read again, in double.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/operation.cuh"
#include "cuda/reduce.cuh"
#include "math/normalization.h"

namespace my_ops::cuda {

/// sum(body(value)) over the channel's values in the tile, by all lanes of the group.
template <class T, class Body>
__device__ double sum_of_values(const T* x, const Tiling& tiling, const Tile& tile, int64_t channel, const Group& group,
                                Body body) {
  const Columns columns = tiling.columns_of(tile.strip, channel);
  double sum = 0;
  for (int64_t row = tile.r0; row < tile.r1; ++row) {
    for (int64_t column = columns.b + group.lane; column < columns.e; column += group.size) {
      if (tiling.exists(tile.strip, row, column)) {
        sum += body(static_cast<double>(convert<Accumulator<T>>(x[tiling.element(tile.strip, row, column)])));
      }
    }
  }
  return group.sum(sum);
}

/// Two passes in double; also for values whose squares exceed float32.
template <class T>
__device__ __noinline__ Partial moments_in_double(const T* x, const Tiling& tiling, Tile tile, int64_t channel,
                                                  int64_t count, Group group) {
  const auto n = static_cast<double>(count);
  const double center = sum_of_values(x, tiling, tile, channel, group, [](double value) { return value; }) / n;
  const double first = sum_of_values(x, tiling, tile, channel, group, [&](double value) { return value - center; });
  const double second =
      sum_of_values(x, tiling, tile, channel, group, [&](double value) { return (value - center) * (value - center); });
  const bool finite = center - center == 0;
  return {finite ? center + first / n : center, finite ? second - first * first / n : second, count};
}

/// The mean of samples spread over the channel's values in the tile, x0 + sum(xi - x0) / samples, which is exact for
/// constant channels; 0 where that is not finite.
template <class T>
__device__ Accumulator<T> choose_pivot(const T* x, const Tiling& tiling, const Tile& tile, int64_t channel) {
  using A = Accumulator<T>;
  constexpr int kSamples = 8;
  const Columns columns = tiling.columns_of(tile.strip, channel);
  A values[kSamples];
#pragma unroll
  for (int i = 0; i < kSamples; ++i) {
    const int64_t row = tile.r0 + i * (tile.r1 - tile.r0) / kSamples;
    // 5 is prime to 8: neighbours in time are not neighbours in place.
    const int64_t column = columns.b + (i * 5 % kSamples) * (columns.e - columns.b) / kSamples;
    const bool exists = tiling.exists(tile.strip, row, column);
    values[i] = convert<A>(x[tiling.element(tile.strip, row, exists ? column : columns.b)]);
  }
  A difference = 0;
#pragma unroll
  for (int i = 1; i < kSamples; ++i) difference += values[i] - values[0];
  const A mean = values[0] + difference / A(kSamples);
  return mean - mean == A(0) ? mean : A(0);
}

/// y = epilogue(z), z = (x - center) * scale + shift
template <class T, class Epilogue>
struct ForwardMap {
  using A = Accumulator<T>;
  using Coefficients = math::Affine<A>;
  static constexpr int kInputs = 1;

  Affines affine;
  Epilogue epilogue;

  __device__ Coefficients coefficients(int64_t c, const Summary& statistics) const {
    return math::forward_affine<A>(statistics.first, statistics.second, read(affine.gamma, c, A(1)),
                                   read(affine.beta, c, A(0)));
  }
  template <int E, int V, class More>
  __device__ __forceinline__ Packed<T, V> map(const Coefficients (&k)[E], const Packed<T, V> (&in)[1], const More& more,
                                              int64_t element) const {
    A z[V];
    unpack(in[0], z);
#pragma unroll
    for (int i = 0; i < V; ++i) z[i] = (z[i] - k[i * E / V].center) * k[i * E / V].scale + k[i * E / V].shift;
    epilogue.output(z, more, element);
    return packed<T>(z);
  }
};

/// Joins moments; the first step of every conclusion about a batch.
struct MomentsMerge {
  __device__ static Partial merge(const Partial& a, const Partial& b) {
    const auto joined = math::merge<double>({a.first, a.second, a.count}, {b.first, b.second, b.count});
    return {joined.mean, joined.m2, joined.count};
  }
};

/// mean and M2 themselves.
struct StatsConclusion : MomentsMerge {
  Vector mean;
  Vector m2;

  __device__ Summary conclude(int64_t c, const Partial& batch, bool) const {
    write(mean, c, batch.first);
    write(m2, c, batch.second);
    return {batch.first, batch.second};
  }
};

/// (mean, invstd), and what a training step leaves behind. A batch of no values leaves the running statistics alone.
struct ForwardConclusion : MomentsMerge {
  Running running;
  double eps;
  Vector save_mean;
  Vector save_invstd;

  __device__ Summary conclude(int64_t c, const Partial& batch, bool publish) const {
    const math::Moments<double> moments{batch.first, batch.second, batch.count};
    const double invstd = math::inverse_std(math::variance(moments), eps);
    if (publish) {
      write(save_mean, c, moments.mean);
      write(save_invstd, c, invstd);
      if (moments.count > 0) update_running(c, moments);
    }
    return {moments.mean, invstd};
  }

 private:
  __device__ void update_running(int64_t c, const math::Moments<double>& batch) const {
    const double factor = running.cumulative ? 1.0 / static_cast<double>(*running.counter + 1) : running.momentum;
    write(running.mean, c, math::update_running<double>(read(running.mean, c, 0.0), batch.mean, factor));
    write(running.var, c,
          math::update_running<double>(read(running.var, c, 0.0), math::unbiased_variance(batch), factor));
  }
};

/// One pass over x.
template <class T>
struct MomentsReduction {
  using A = Accumulator<T>;
  using Seed = A;  // the pivot
  static constexpr int kInputs = 1;

  Plain<T> epilogue;

  __device__ static Seed seed(const Inputs<T>& in, const Tiling& tiling, const Tile& tile, int64_t channel) {
    return tile.r0 < tile.r1 ? choose_pivot(in.tensors[0], tiling, tile, channel) : A(0);
  }
  template <int E, int V, class More, class Add>
  __device__ __forceinline__ static void terms(const Seed (&pivot)[E], const Packed<T, V> (&in)[1], const More&,
                                               int64_t, Add add) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const A d = value<A>(in[0], i) - pivot[i * E / V];
      add(i, d, d * d);
    }
  }
  /// (mean - pivot)^2 <= 3 * variance bounds the cancellation to two bits.
  __device__ static Partial partial(const Inputs<T>& in, const Tiling& tiling, const Tile& tile, int64_t channel,
                                    const Seed& pivot, double first, double second, const Group& group) {
    const int64_t count = tiling.values(tile, channel);
    if (count == 0) return {0, 0, 0};
    const double mean = first / static_cast<double>(count);
    const double between = mean * first;
    const double within = second - between;
    if (between <= 3 * within && within - within == 0) return {pivot + mean, within, count};
    return moments_in_double(in.tensors[0], tiling, tile, channel, count, group);
  }
};

}  // namespace my_ops::cuda
