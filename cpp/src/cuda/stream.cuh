// The stream family: reduce tiles, join their results per channel, map tiles. Any shape and type, any GPU. Reads every
// input twice, the second time in reverse order: what was read last is still in the L2 cache.
#pragma once

#include "cuda/forward.cuh"
#include "cuda/tile.cuh"

namespace my_ops::cuda {

/// Partial results of tiles: [C][most_parts], where a channel uses the first parts_of(channel).
struct TileParts {
  Partial* parts;
  Tiling tiling;

  __device__ int64_t count(int64_t channel) const { return tiling.parts_of(channel); }
  __device__ Partial operator()(int64_t channel, int64_t part) const {
    return parts[channel * tiling.most_parts() + part];
  }
  __device__ void put(const Tile& tile, int64_t channel, const Partial& partial) const {
    parts[channel * tiling.most_parts() + tiling.part(tile, channel)] = partial;
  }
};

/// One CTA per tile.
template <class T, int V, int E, class Reduction>
__global__ void __launch_bounds__(256, 2)
    reduce_kernel(Inputs<T> in, const __grid_constant__ TileParts results, Reduction reduction) {
  const Tiling& tiling = results.tiling;
  const Tile tile = tiling.tile(blockIdx.x % tiling.strips(), blockIdx.x / tiling.strips());
  SharedArrays shared;
  reduce_tile<V, E, kRowsInFlight<Reduction::kInputs>>(
      in, tiling, tile, reduction, shared,
      [&](int k, int64_t element, int32_t) { return load<V>(in.tensors[k] + element); },
      [](int64_t, int32_t, const auto&) {},
      [&](int32_t, int64_t channel, const Partial& partial) { results.put(tile, channel, partial); });
}

/// The same, mapping the last input in the same pass with coefficients that need no summary.
template <class T, int V, int E, class Reduction, class Map>
__global__ void __launch_bounds__(256, 2)
    reduce_and_map_kernel(Inputs<T> in, T* out, const __grid_constant__ TileParts results, Reduction reduction,
                          Map map) {
  constexpr int kLast = Reduction::kInputs - 1;
  const Tiling& tiling = results.tiling;
  const Tile tile = tiling.tile(blockIdx.x % tiling.strips(), blockIdx.x / tiling.strips());
  const ChannelsOfThread<E> mine(tiling, tile, Cursor(tiling, tile).column());
  typename Map::Coefficients coefficients[E];
#pragma unroll
  for (int e = 0; e < E; ++e) {
    coefficients[e] = map.coefficients(tiling.first_channel(tile.strip) + mine.index[e], Summary{0, 0});
  }
  SharedArrays shared;
  reduce_tile<V, E, kRowsInFlight<Reduction::kInputs>>(
      in, tiling, tile, reduction, shared,
      [&](int k, int64_t element, int32_t) { return load<V>(in.tensors[k] + element); },
      [&](int64_t element, int32_t, const auto& vectors) {
        const Packed<T, V> last[] = {vectors[kLast]};
        store<V>(out + element, map.map(coefficients, last, map.epilogue.template more<V>(element), element));
      },
      [&](int32_t, int64_t channel, const Partial& partial) { results.put(tile, channel, partial); });
}

inline constexpr int kJoinThreads = 256;

/// One warp per channel.
template <class Conclusion, class Parts>
__global__ void __launch_bounds__(kJoinThreads, 4)
    join_kernel(Parts parts, int64_t channels, Conclusion conclusion, Summary* summaries) {
  const int64_t channel = (static_cast<int64_t>(blockIdx.x) * kJoinThreads + threadIdx.x) / 32;
  if (channel >= channels) return;
  const Group warp(32);
  const Partial total =
      join(warp, parts.count(channel), conclusion, [&](int64_t part) { return parts(channel, part); });
  if (warp.lane != 0) return;
  const Summary summary = conclusion.conclude(channel, total, true);
  if (summaries != nullptr) summaries[channel] = summary;
}

/// Where map_kernel has the summary of a channel from. first_use: true in one CTA per channel.
struct JoinedSummaries {
  const Summary* summaries;

  __device__ Summary operator()(int64_t channel, bool) const { return summaries[channel]; }
};

struct NoSummaries {
  __device__ Summary operator()(int64_t, bool) const { return {0, 0}; }
};

struct GivenSummaries {
  Vector first;
  Vector second;

  __device__ Summary operator()(int64_t channel, bool) const {
    return {read(first, channel, 0.0), read(second, channel, 0.0)};
  }
};

/// Statistics from outside; what was used is published.
struct GivenStatistics {
  Vector mean;
  Vector spread;
  bool spread_is_invstd;
  double eps;
  Vector save_mean;
  Vector save_invstd;

  __device__ Summary operator()(int64_t channel, bool first_use) const {
    const double given = read(spread, channel, 0.0);
    const Summary statistics{read(mean, channel, 0.0), spread_is_invstd ? given : math::inverse_std(given, eps)};
    if (first_use) {
      write(save_mean, channel, statistics.first);
      write(save_invstd, channel, statistics.second);
    }
    return statistics;
  }
};

/// One CTA per tile, the last tiles first. `counter`: incremented, if given; no kernel reads it at that time.
template <class T, int V, int E, class Map, class Source>
__global__ void __launch_bounds__(256, 2)
    map_kernel(Inputs<T> in, T* out, const __grid_constant__ Tiling tiling, Map map, Source source, int64_t* counter) {
  const int64_t index = static_cast<int64_t>(gridDim.x) - 1 - blockIdx.x;
  const Tile tile = tiling.tile(index % tiling.strips(), index / tiling.strips());
  SharedArrays shared;
  auto* coefficients = shared.take<typename Map::Coefficients>(tiling.most_channels());
  for (int32_t i = threadIdx.x; i < tiling.channels_of(tile.strip); i += blockDim.x) {
    const int64_t channel = tiling.first_channel(tile.strip) + i;
    const bool first_use = tile.chunk == 0 && tile.strip == tiling.first_strip(channel);
    coefficients[i] = map.coefficients(channel, source(channel, first_use));
  }
  if (counter != nullptr && blockIdx.x == 0 && threadIdx.x == 0) ++*counter;
  __syncthreads();
  map_tile<V, E, kRowsInFlight<Map::kInputs>>(
      out, tiling, tile, map, coefficients,
      [&](int k, int64_t element, int32_t) { return load<V>(in.tensors[k] + element); });
}

}  // namespace my_ops::cuda
