// From one value per thread and column to one per channel of a tile.
#pragma once

#include <type_traits>

#include "cuda/operation.cuh"
#include "cuda/tiling.h"

namespace my_ops::cuda {

/// Adjacent lanes of a warp that work on one channel: a power of two of them.
struct Group {
  int32_t size;
  int32_t lane;   // of this thread, within the group
  uint32_t mask;  // of its lanes in the warp

  __device__ explicit Group(int32_t size)
      : size(size),
        lane(static_cast<int32_t>(threadIdx.x) % size),
        mask(size == 32 ? 0xffffffffu : ((1u << size) - 1) << (static_cast<int32_t>(threadIdx.x) % 32 / size * size)) {}

  /// The sum over all lanes, with the same bits in each. All lanes of the group must call it.
  __device__ double sum(double value) const {
    for (int32_t distance = 1; distance < size; distance *= 2) value += __shfl_xor_sync(mask, value, distance);
    return value;
  }
};

/// get(0), ..., get(count - 1) joined by all lanes of the group, with the same result in each: lane i joins the parts
/// i, i + size, ..., then neighbours join, always the lower one first.
template <class Conclusion, class Get>
__device__ __forceinline__ Partial join(const Group& group, int64_t count, const Conclusion& conclusion, Get get) {
  Partial mine{0, 0, 0};
  for (int64_t part = group.lane; part < count; part += group.size) mine = conclusion.merge(mine, get(part));
  for (int32_t distance = 1; distance < group.size; distance *= 2) {
    const Partial other{__shfl_xor_sync(group.mask, mine.first, distance),
                        __shfl_xor_sync(group.mask, mine.second, distance),
                        __shfl_xor_sync(group.mask, mine.count, distance)};
    mine = group.lane & distance ? conclusion.merge(other, mine) : conclusion.merge(mine, other);
  }
  return mine;
}

/// Sums of one thread over its rows, for two terms per value, in two levels: column by column for kFlush rows, then
/// these sums for each of the E channels. In one level, long sums of equal terms would lose digits in the same
/// direction everywhere. Registers for doubles are there if a thread has one channel; else the second level is the
/// thread's cells in shared memory.
template <class A, int V, int E>
class ThreadSums {
 public:
  /// Cells: [lanes_y][lanes_x * E] of each term. Threads without cells walk no rows.
  __device__ ThreadSums(A* first_cells, A* second_cells, bool has_cells)
      : first_cells_(first_cells + threadIdx.x * E), second_cells_(second_cells + threadIdx.x * E) {
    if (has_cells) write();
  }

  __device__ __forceinline__ void add(int i, A first, A second) {
    first_[i] += first;
    second_[i] += second;
  }

  /// After every `rows` rows.
  __device__ __forceinline__ void tick(int rows) {
    ticks_ += rows;
    if (ticks_ >= kFlush) flush();
  }

  /// Brings the cells up to date.
  __device__ void finish() {
    flush();
    if constexpr (kInRegisters) write();
  }

 private:
  static constexpr int kFlush = 32;
  static constexpr bool kInRegisters = E == 1;

  __device__ __forceinline__ void flush() {
    ticks_ = 0;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if constexpr (kInRegisters) {
        first_total_ += first_[i];
        second_total_ += second_[i];
      } else {
        first_cells_[i * E / V] += first_[i];
        second_cells_[i * E / V] += second_[i];
      }
      first_[i] = second_[i] = A(0);
    }
  }

  __device__ void write() {
#pragma unroll
    for (int e = 0; e < E; ++e) {
      first_cells_[e] = static_cast<A>(first_total_);
      second_cells_[e] = static_cast<A>(second_total_);
    }
  }

  A* first_cells_;
  A* second_cells_;
  A first_[V] = {};
  A second_[V] = {};
  double first_total_ = 0;
  double second_total_ = 0;
  int ticks_ = 0;
};

/// take(channel, first, second, group) for every channel of the tile, with its sums over the cells, in all lanes of the
/// group that the channel fell to. Cells as ThreadSums writes them, with a barrier in between.
template <int E, class A, class Take>
__device__ void reduce_cells(const Tiling& tiling, const Tile& tile, const A* first_cells, const A* second_cells,
                             Take take) {
  constexpr int32_t kCellsPerLane = 4;
  const int32_t columns_per_cell = E == 1 ? tiling.vector : 1;
  const int32_t row_cells = tiling.lanes_x * E;
  const int32_t channels = tiling.channels_of(tile.strip);
  const auto threads = static_cast<int32_t>(blockDim.x);
  int32_t size = 32;
  while (size > 1 && (size * channels > threads || size * kCellsPerLane * channels > row_cells * tiling.lanes_y)) {
    size /= 2;
  }
  const Group group(size);
  for (int32_t i = static_cast<int32_t>(threadIdx.x) / size; i < channels; i += threads / size) {
    const int64_t channel = tiling.first_channel(tile.strip) + i;
    const Columns columns = tiling.columns_of(tile.strip, channel);
    const auto begin = static_cast<int32_t>(columns.b) / columns_per_cell;
    const auto width = static_cast<int32_t>(columns.e) / columns_per_cell - begin;
    double first = 0;
    double second = 0;
    for (int32_t cell = group.lane; cell < width * tiling.lanes_y; cell += size) {
      const int32_t at = cell / width * row_cells + begin + cell % width;
      first += first_cells[at];
      second += second_cells[at];
    }
    take(channel, i, group.sum(first), group.sum(second), group);
  }
}

}  // namespace my_ops::cuda
