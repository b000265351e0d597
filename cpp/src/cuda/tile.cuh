// The two things done with a tile: reduce it, and map it (operation.cuh says with what).
#pragma once

#include "cuda/operation.cuh"
#include "cuda/reduce.cuh"
#include "cuda/shared.cuh"
#include "cuda/walk.cuh"

namespace my_ops::cuda {

/// Rows that a thread reads before it uses the first: 64 bytes are in flight.
template <int kInputs>
inline constexpr int kRowsInFlight = 4 / kInputs;

/// Reads the tile once. get(k, element, step) gives the vectors of the k-th input; each(element, vectors) sees one
/// vector of every input at a time; take(i, channel, partial) gets every channel's result, from one thread each. Ends
/// without a barrier behind take.
template <int V, int E, class T, class Reduction, class Get, class Each, class Take>
__device__ __forceinline__ void reduce_tile(const Inputs<T>& in, const Tiling& tiling, const Tile& tile,
                                            const Reduction& reduction, SharedArrays& shared, Get get, Each each,
                                            Take take) {
  using A = Accumulator<T>;
  constexpr int kInputs = Reduction::kInputs;
  constexpr int kRows = kRowsInFlight<kInputs>;
  A* first_cells = shared.take<A>(tiling.lanes() * E);
  A* second_cells = shared.take<A>(tiling.lanes() * E);
  shared.align();
  auto* seeds = shared.take<typename Reduction::Seed>(tiling.most_channels());
  for (int32_t i = threadIdx.x; i < tiling.channels_of(tile.strip); i += blockDim.x) {
    seeds[i] = reduction.seed(in, tiling, tile, tiling.first_channel(tile.strip) + i);
  }
  __syncthreads();

  const Cursor cursor(tiling, tile);
  const ChannelsOfThread<E> mine(tiling, tile, cursor.column());
  typename Reduction::Seed seed[E];
#pragma unroll
  for (int e = 0; e < E; ++e) seed[e] = seeds[mine.index[e]];
  ThreadSums<A, V, E> sums;
  Packed<T, V> values[kRows][kInputs];
  for_rows<kRows>(
      cursor,
      [&](int u, int64_t element, int32_t step) {
#pragma unroll
        for (int k = 0; k < kInputs; ++k) values[u][k] = get(k, element, step);
      },
      [&](int u, int64_t element, int32_t) {
        each(element, values[u]);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          reduction.terms(seed[i * E / V], value<A>(values[u][0], i), value<A>(values[u][kInputs - 1], i),
                          [&](A first, A second) { sums.add(i, first, second); });
        }
      },
      [&] { sums.tick(kRows); });
  if (static_cast<int32_t>(threadIdx.x) < tiling.lanes()) sums.write(first_cells, second_cells);
  __syncthreads();
  reduce_cells<E>(tiling, tile, first_cells, second_cells,
                  [&](int64_t channel, int32_t i, double first, double second, const Group& group) {
                    const Partial partial =
                        reduction.partial(in, tiling, tile, channel, seeds[i], first, second, group);
                    if (group.lane == 0) take(i, channel, partial);
                  });
}

/// One vector of the output; k: the coefficients of this thread's E channels.
template <int E, class T, int V, class Map>
__device__ __forceinline__ Packed<T, V> mapped(const Map& map, const typename Map::Coefficients (&k)[E],
                                               const Packed<T, V>& first, const Packed<T, V>& last) {
  using A = Accumulator<T>;
  Packed<T, V> result;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    result.values[i] = rounded<T>(map.map(k[i * E / V], value<A>(first, i), value<A>(last, i)));
  }
  return result;
}

/// Writes the tile once. get(k, element, step) gives the vectors of the k-th input; coefficients: those of the tile's
/// channels, in shared memory, behind a barrier.
template <int V, int E, class T, class Map, class Get>
__device__ __forceinline__ void map_tile(T* out, const Tiling& tiling, const Tile& tile, const Map& map,
                                         const typename Map::Coefficients* coefficients, Get get) {
  constexpr int kInputs = Map::kInputs;
  constexpr int kRows = kRowsInFlight<kInputs>;
  const Cursor cursor(tiling, tile);
  const ChannelsOfThread<E> mine(tiling, tile, cursor.column());
  typename Map::Coefficients k[E];
#pragma unroll
  for (int e = 0; e < E; ++e) k[e] = coefficients[mine.index[e]];
  Packed<T, V> values[kRows][kInputs];
  for_rows<kRows>(
      cursor,
      [&](int u, int64_t element, int32_t step) {
#pragma unroll
        for (int input = 0; input < kInputs; ++input) values[u][input] = get(input, element, step);
      },
      [&](int u, int64_t element, int32_t) {
        store<V>(out + element, mapped<E>(map, k, values[u][0], values[u][kInputs - 1]));
      },
      [] {});
}

}  // namespace my_ops::cuda
