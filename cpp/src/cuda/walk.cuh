// One thread's way through a tile: V adjacent columns, every lanes_y-th row.
#pragma once

#include "cuda/tiling.h"

namespace my_ops::cuda {

class Cursor {
 public:
  __device__ Cursor(const Tiling& tiling, const Tile& tile) : span_(tiling.span), lanes_y_(tiling.lanes_y) {
    const auto thread = static_cast<int32_t>(threadIdx.x);
    const int32_t y = thread / tiling.lanes_x;
    column_ = thread % tiling.lanes_x * tiling.vector;
    left_ = thread < tiling.lanes() ? static_cast<int32_t>(tile.r1 - tile.r0) - y : 0;
    last_fold_ = static_cast<int32_t>(tiling.folds) - 1;
    fold_ = static_cast<int32_t>((tile.r0 + y) % tiling.folds);
    last_columns_ = static_cast<int32_t>(tiling.positions(tile.strip) - last_fold_ * static_cast<int64_t>(span_));
    element_ = tiling.element(tile.strip, tile.r0 + y, column_);
    wrap_ = last_fold_ == 0 ? lanes_y_ * tiling.pitch() : tiling.pitch() - last_fold_ * static_cast<int64_t>(span_);
  }

  /// False from the end of the tile on.
  __device__ bool more() const { return left_ > 0; }
  /// Whether the vector here exists: the last row of a folded run is shorter, as is the last strip.
  __device__ bool exists() const { return left_ > 0 && (fold_ < last_fold_ || column_ < last_columns_); }
  __device__ int64_t element() const { return element_; }
  __device__ int32_t column() const { return column_; }

  /// To the next row of this thread. Where runs are folded, lanes_y is 1.
  __device__ void advance() {
    left_ -= lanes_y_;
    if (fold_ < last_fold_) {
      ++fold_;
      element_ += span_;
    } else {
      fold_ = 0;
      element_ += wrap_;
    }
  }

 private:
  int32_t span_;
  int32_t lanes_y_;
  int32_t column_;
  int32_t left_;  // rows from here to the end of the tile
  int32_t fold_;
  int32_t last_fold_;
  int32_t last_columns_;  // columns of the last fold
  int64_t element_;
  int64_t wrap_;
};

/// get(u, element, step) for kUnroll rows, so that as many loads are in flight; then use(u, element, step) for each;
/// then after(). Rows behind the end are left out; `step` counts this thread's rows.
template <int kUnroll, class Get, class Use, class After>
__device__ __forceinline__ void for_rows(Cursor cursor, Get get, Use use, After after) {
  for (int32_t step = 0; cursor.more(); step += kUnroll) {
    bool exists[kUnroll];
    int64_t element[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      exists[u] = cursor.exists();
      element[u] = cursor.element();
      if (exists[u]) get(u, element[u], step + u);
      cursor.advance();
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (exists[u]) use(u, element[u], step + u);
    }
    after();
  }
}

/// The channels of this thread's columns, counted from the tile's first: E of them, one per column or one for all.
template <int E>
struct ChannelsOfThread {
  int32_t index[E];

  __device__ ChannelsOfThread(const Tiling& tiling, const Tile& tile, int32_t column) {
    const int32_t last = tiling.channels_of(tile.strip) - 1;
    const int64_t begin = tiling.first_channel(tile.strip) * tiling.inner;
    const auto before = static_cast<int32_t>(tiling.first_column(tile.strip) - begin);
#pragma unroll
    for (int e = 0; e < E; ++e) {
      // By columns, inner and what precedes the strip in its first channel fit 32 bits (kHugeRun in launch_plan.cpp).
      const int32_t channel = tiling.runs ? 0 : (before + column + e) / static_cast<int32_t>(tiling.inner);
      index[e] = channel < last ? channel : last;
    }
  }
};

}  // namespace my_ops::cuda
