// The two things done with a tile: reduce it, and map it (operation.cuh says with what).
#pragma once

#include <utility>

#include "cuda/operation.cuh"
#include "cuda/reduce.cuh"
#include "cuda/shared.cuh"
#include "cuda/walk.cuh"

namespace my_ops::cuda {

/// Rows that a thread reads before it uses the first: 64 bytes are in flight.
template <int kInputs>
inline constexpr int kRowsInFlight = 4 / kInputs;

/// What an operation's epilogue reads of a vector.
template <int V, class Operation>
using MoreOf = decltype(std::declval<const Operation&>().epilogue.template more<V>(int64_t{}));

/// Reads the tile once. get(k, element, step) gives the vectors of the k-th input; each(element, step, vectors) sees
/// one vector of every input at a time, dy as the reduction left it; take(i, channel, partial) gets every channel's
/// result, from one thread each. kRows rows are read before the first is used. Ends without a barrier behind take.
template <int V, int E, int kRows, class T, class Reduction, class Get, class Each, class Take>
__device__ __forceinline__ void reduce_tile(const Inputs<T>& in, const Tiling& tiling, const Tile& tile,
                                            const Reduction& reduction, SharedArrays& shared, Get get, Each each,
                                            Take take) {
  using A = Accumulator<T>;
  constexpr int kInputs = Reduction::kInputs;
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
  const bool has_cells = static_cast<int32_t>(threadIdx.x) < tiling.lanes();
  ThreadSums<A, V, E> sums(first_cells, second_cells, has_cells);
  Packed<T, V> values[kRows][kInputs];
  MoreOf<V, Reduction> more[kRows];
  for_rows<kRows>(
      cursor,
      [&](int u, int64_t element, int32_t step) {
#pragma unroll
        for (int k = 0; k < kInputs; ++k) values[u][k] = get(k, element, step);
        more[u] = reduction.epilogue.template more<V>(element);
      },
      [&](int u, int64_t element, int32_t step) {
        reduction.terms(seed, values[u], more[u], element,
                        [&](int i, A first, A second) { sums.add(i, first, second); });
        each(element, step, values[u]);
      },
      [&] { sums.tick(kRows); });
  if (has_cells) sums.finish();
  __syncthreads();
  reduce_cells<E>(tiling, tile, first_cells, second_cells,
                  [&](int64_t channel, int32_t i, double first, double second, const Group& group) {
                    const Partial partial =
                        reduction.partial(in, tiling, tile, channel, seeds[i], first, second, group);
                    if (group.lane == 0) take(i, channel, partial);
                  });
}

/// Writes the tile once. get(k, element, step) gives the vectors of the k-th input; coefficients: those of the tile's
/// channels, in shared memory, behind a barrier.
template <int V, int E, int kRows, class T, class Map, class Get>
__device__ __forceinline__ void map_tile(T* out, const Tiling& tiling, const Tile& tile, const Map& map,
                                         const typename Map::Coefficients* coefficients, Get get) {
  constexpr int kInputs = Map::kInputs;
  const Cursor cursor(tiling, tile);
  const ChannelsOfThread<E> mine(tiling, tile, cursor.column());
  typename Map::Coefficients k[E];
#pragma unroll
  for (int e = 0; e < E; ++e) k[e] = coefficients[mine.index[e]];
  Packed<T, V> values[kRows][kInputs];
  MoreOf<V, Map> more[kRows];
  for_rows<kRows>(
      cursor,
      [&](int u, int64_t element, int32_t step) {
#pragma unroll
        for (int input = 0; input < kInputs; ++input) values[u][input] = get(input, element, step);
        more[u] = map.epilogue.template more<V>(element);
      },
      [&](int u, int64_t element, int32_t) { store<V>(out + element, map.map(k, values[u], more[u], element)); },
      [] {});
}

}  // namespace my_ops::cuda
