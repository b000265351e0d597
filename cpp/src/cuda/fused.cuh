// The fused family: a team keeps a whole strip in shared memory, so every input is read once.
//
//   reduce and keep the tile -> exchange partial results -> map what was kept
//
// Every member joins the partial results of all members, in the same order: the same bits everywhere, and one exchange.
#pragma once

#include "cuda/async_copy.cuh"
#include "cuda/team.cuh"
#include "cuda/tile.cuh"

namespace my_ops::cuda {

/// The vectors of a tile, each read only by the thread that has fetched it: no barrier, no bank conflict. All are in
/// flight at once: 64 bytes per thread, as registers would hold them, are 16 or 32 KB per multiprocessor, and 4.8 TB/s
/// with 0.8 us from request to arrival ask for 29 KB of each of an H200's 132.
template <class T, int V, int kInputs>
class Stash {
 public:
  __device__ Stash(SharedArrays& shared, const Tiling& tiling)
      : steps_(static_cast<int32_t>(tiling.steps())),
        per_group_((steps_ + kGroups - 1) / kGroups),
        vectors_(shared.take<Packed<T, V>>(static_cast<int64_t>(kInputs) * steps_ * blockDim.x) + threadIdx.x) {}

  /// Starts to copy the tile, in groups of steps.
  __device__ __forceinline__ void fetch(const Inputs<T>& in, const Tiling& tiling, const Tile& tile) {
    Cursor cursor(tiling, tile);
    int32_t step = 0;
    for (int32_t end = per_group_; end <= kGroups * per_group_; end += per_group_) {
      for (; step < end && cursor.more(); ++step, cursor.advance()) {
#pragma unroll
        for (int k = 0; k < kInputs; ++k) {
          if (cursor.exists()) copy_async(&at(k, step), in.tensors[k] + cursor.element());
        }
      }
      commit_copies();
    }
  }

  /// Waits until the vectors of a step are here; steps in rising order.
  __device__ __forceinline__ void await(int32_t step) {
    for (; step >= here_; here_ += per_group_) wait_for_copies(--behind_);
  }

  __device__ Packed<T, V>& at(int k, int32_t step) const { return vectors_[(k * steps_ + step) * blockDim.x]; }

 private:
  static constexpr int kGroups = kMostGroupsBehind + 1;

  int32_t steps_;
  int32_t per_group_;
  int32_t here_ = 0;
  int32_t behind_ = kGroups;
  Packed<T, V>* vectors_;
};

/// One tile by one member of its team. `shared`: what the team has not taken.
template <int V, int E, class T, class Team, class Reduction, class Conclusion, class Map>
__device__ __forceinline__ void fused_tile(const Inputs<T>& in, T* out, const Tiling& tiling, const Tile& tile,
                                           const Team& team, const Reduction& reduction, const Conclusion& conclusion,
                                           const Map& map, SharedArrays shared) {
  constexpr int kLast = Reduction::kInputs - 1;
  Stash<T, V, Reduction::kInputs> stash(shared, tiling);
  stash.fetch(in, tiling, tile);
  auto* coefficients = shared.take<typename Map::Coefficients>(tiling.most_channels());
  shared.align();
  // What a thread reads is near, in shared memory: few rows are enough, and an epilogue leaves registers for one.
  constexpr bool kPlain = std::is_empty_v<decltype(Reduction::epilogue)> && std::is_empty_v<decltype(Map::epilogue)>;
  constexpr int kRows = kPlain ? 2 : 1;
  reduce_tile<V, E, kRows>(
      in, tiling, tile, reduction, shared,
      [&](int k, int64_t, int32_t step) {
        stash.await(step);
        return stash.at(k, step);
      },
      [&](int64_t, int32_t step, const auto& vectors) {
        if (reduction.epilogue.replaces()) stash.at(kLast, step) = vectors[kLast];
      },
      [&](int32_t i, int64_t, const Partial& partial) { team.mine(i) = partial; });
  team.sync();
  int32_t lanes = 1;  // that join the partial results of a channel
  while (lanes < team.size() && lanes < 32) lanes *= 2;
  const Group group(lanes);
  for (int32_t i = threadIdx.x / lanes; i < tiling.channels_of(tile.strip); i += blockDim.x / lanes) {
    const Partial total =
        join(group, team.size(), conclusion, [&](int64_t rank) { return team.of(static_cast<int32_t>(rank), i); });
    if (group.lane != 0) continue;
    const int64_t channel = tiling.first_channel(tile.strip) + i;
    coefficients[i] = map.coefficients(channel, conclusion.conclude(channel, total, tile.chunk == 0));
  }
  team.leave();
  map_tile<V, E, kRows>(out, tiling, tile, map, coefficients,
                        [&](int k, int64_t, int32_t step) { return stash.at(k, step); });
}

/// Grid: strips * team_size CTAs, those of a team side by side, as a cluster if there are more than one. `counter`: as
/// in map_kernel.
template <class T, int V, int E, class Reduction, class Conclusion, class Map>
__global__ void __launch_bounds__(kFusedThreads, 1)
    fused_kernel(Inputs<T> in, T* out, const __grid_constant__ Tiling tiling, int32_t team_size, Reduction reduction,
                 Conclusion conclusion, Map map, int64_t* counter) {
  if (counter != nullptr && blockIdx.x == 0 && threadIdx.x == 0) ++*counter;
  const Tile tile = tiling.tile(blockIdx.x / team_size, blockIdx.x % team_size);
  SharedArrays shared;
  const ClusterTeam team(team_size, shared.take<Partial>(tiling.most_channels()));
  shared.align();
  fused_tile<V, E>(in, out, tiling, tile, team, reduction, conclusion, map, shared);
}

/// A cooperative launch of teams * team_size CTAs, which take one strip per team in every round. No barrier ends a
/// round: what the next one writes before its first barrier, no thread reads in this one behind leave(). `slots`:
/// [strips] [team_size][most_channels].
template <class T, int V, int E, class Reduction, class Conclusion, class Map>
__global__ void __launch_bounds__(kFusedThreads, 1)
    fused_rounds_kernel(Inputs<T> in, T* out, const __grid_constant__ Tiling tiling, int32_t team_size,
                        Reduction reduction, Conclusion conclusion, Map map, int64_t* counter, Partial* slots) {
  if (counter != nullptr && blockIdx.x == 0 && threadIdx.x == 0) ++*counter;
  const auto rank = static_cast<int32_t>(blockIdx.x % team_size);
  const auto channels = static_cast<int32_t>(tiling.most_channels());
  const int64_t strips = tiling.strips();
  for (int64_t first = 0; first < strips; first += gridDim.x / team_size) {
    const int64_t strip = first + blockIdx.x / team_size;
    const GridTeam team(team_size, rank, slots + strip * team_size * channels, channels);
    if (strip < strips) {
      fused_tile<V, E>(in, out, tiling, tiling.tile(strip, rank), team, reduction, conclusion, map, SharedArrays());
    } else {
      team.sync();
    }
  }
}

}  // namespace my_ops::cuda
