// The fused family: a team keeps a whole strip in shared memory, so every input is read once.
//
//   reduce and keep the tile -> exchange partial results -> map what was kept
//
// Every member joins the partial results of all members in the order of their ranks: the same bits everywhere, and one
// exchange.
#pragma once

#include "cuda/team.cuh"
#include "cuda/tile.cuh"

namespace my_ops::cuda {

/// Vectors kept by the thread that reads them back: no barrier, no bank conflict. [kInputs][steps][threads]
template <class T, int V>
class Stash {
 public:
  __device__ Stash(SharedArrays& shared, const Tiling& tiling, int inputs)
      : steps_(static_cast<int32_t>(tiling.steps())),
        vectors_(shared.take<Packed<T, V>>(static_cast<int64_t>(inputs) * steps_ * blockDim.x) + threadIdx.x) {}

  __device__ Packed<T, V>& at(int k, int32_t step) const { return vectors_[(k * steps_ + step) * blockDim.x]; }

 private:
  int32_t steps_;
  Packed<T, V>* vectors_;
};

/// Grid: strips * team CTAs, those of a team side by side. `counter`: as in map_kernel.
template <class T, int V, int E, class Reduction, class Conclusion, class Map>
__global__ void __launch_bounds__(512, 1)
    fused_kernel(Inputs<T> in, T* out, const __grid_constant__ Tiling tiling, int32_t team_size, Reduction reduction,
                 Conclusion conclusion, Map map, int64_t* counter) {
  const Team team(team_size);
  const Tile tile = tiling.tile(blockIdx.x / team_size, blockIdx.x % team_size);
  SharedArrays shared;
  const Stash<T, V> stash(shared, tiling, Reduction::kInputs);
  auto* partials = shared.take<Partial>(tiling.most_channels());
  auto* coefficients = shared.take<typename Map::Coefficients>(tiling.most_channels());
  shared.align();
  reduce_tile<V, E>(
      in, tiling, tile, reduction, shared,
      [&](int k, int32_t step, const Packed<T, V>& vector) { stash.at(k, step) = vector; },
      [&](int32_t i, int64_t, const Partial& partial) { partials[i] = partial; });
  team.sync();
  for (int32_t i = threadIdx.x; i < tiling.channels_of(tile.strip); i += blockDim.x) {
    Partial total{0, 0, 0};
    for (int32_t rank = 0; rank < team.size(); ++rank) total = conclusion.merge(total, *team.of(rank, partials + i));
    const int64_t channel = tiling.first_channel(tile.strip) + i;
    coefficients[i] = map.coefficients(channel, conclusion.conclude(channel, total, tile.chunk == 0));
  }
  if (counter != nullptr && blockIdx.x == 0 && threadIdx.x == 0) ++*counter;
  team.sync();
  map_tile<V, E>(out, tiling, tile, map, coefficients, [&](int k, int64_t, int32_t step) { return stash.at(k, step); });
}

}  // namespace my_ops::cuda
