// A region seen as rows of columns: one row per position of a channels-last tensor, or one per image of a contiguous
// tensor with short runs. Where a region has all channels, rows that follow each other in memory are joined ("folded")
// until their columns fill whole vectors.
#pragma once

#include "cpu/simd/vec.h"
#include "plan/partition.h"

namespace my_ops::cpu {
namespace {

using plan::Layout;
using plan::Region;
using plan::Shape;

/// Column j holds a value of channel c0 + (j / inner) % channels.
struct Rows {
  int64_t offset;    // element of the first column of the first row
  int64_t stride;    // elements from row to row
  int64_t columns;   // <= kMaxColumns
  int64_t count;     // whole rows
  int64_t rest;      // columns of a last, shorter row
  int64_t channels;  // of the region
  int64_t inner;     // columns of one channel side by side
};

constexpr int64_t kFoldedColumns = 256;  // enough that the loop over columns dwarfs the loop over rows

MY_OPS_INLINE int64_t greatest_common_divisor(int64_t a, int64_t b) {
  while (b != 0) {
    const int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

/// How many rows to join: the fewest that end on a vector's end, times what makes the row long enough.
MY_OPS_INLINE int64_t fold_factor(int64_t columns, int64_t rows, int64_t lanes) {
  int64_t fold = lanes / greatest_common_divisor(columns, lanes);
  if (fold * columns > plan::kMaxColumns || fold > rows) return 1;
  while (fold * columns * 2 <= kFoldedColumns && fold * 2 <= rows) fold *= 2;
  return fold;
}

MY_OPS_INLINE Rows rows_of(const Shape& shape, const Region& region, int64_t lanes) {
  const int64_t inner = shape.layout == Layout::channels_last ? 1 : shape.s;
  const int64_t channels = region.c1 - region.c0;
  const int64_t stride = shape.c * inner;
  const int64_t offset = region.b / inner * stride + region.c0 * inner;
  const int64_t columns = channels * inner;
  const int64_t count = (region.e - region.b) / inner;
  if (channels < shape.c) return {offset, stride, columns, count, 0, channels, inner};
  const int64_t fold = fold_factor(columns, count, lanes);
  return {offset, columns * fold, columns * fold, count / fold, count % fold * columns, channels, inner};
}

/// A value per channel as a value per column, padded with zeros to whole vectors.
template <class A>
struct Columns {
  alignas(kVecBytes) A values[plan::kMaxColumns + kLanes<A>];

  MY_OPS_INLINE void expand(const Rows& rows, const A* per_channel) {
    if (rows.inner == 1) {
      for (int64_t j = 0; j < rows.columns; j += rows.channels) {
        for (int64_t c = 0; c < rows.channels; ++c) values[j + c] = per_channel[c];
      }
    } else {
      for (int64_t j = 0; j < rows.columns;) {
        for (int64_t c = 0; c < rows.channels; ++c) {
          for (int64_t i = 0; i < rows.inner; ++i) values[j++] = per_channel[c];
        }
      }
    }
    for (int i = 0; i < kLanes<A>; ++i) values[rows.columns + i] = A(0);
  }

  MY_OPS_INLINE Vec<A> at(int64_t j) const { return load(values + j, All{}, Vec<A>{}); }
};

/// Sums per column in the accumulation type, for up to kBlockRows rows; flush() adds them to the channels' sums in
/// double.
template <class A>
struct ColumnSums {
  static constexpr int64_t kBlockRows = 256;

  alignas(kVecBytes) A values[plan::kMaxColumns + kLanes<A>];
  double* sums;  // [channels]

  MY_OPS_INLINE ColumnSums(const Rows& rows, double* sums) : sums(sums) {
    for (int64_t j = 0; j < rows.columns + kLanes<A>; ++j) values[j] = A(0);
    for (int64_t c = 0; c < rows.channels; ++c) sums[c] = 0;
  }

  MY_OPS_INLINE void add(int64_t j, Vec<A> v) { store(values + j, All{}, load(values + j, All{}, v) + v); }

  MY_OPS_INLINE void flush(const Rows& rows) {
    const int64_t period = rows.channels * rows.inner;
    for (int64_t j = 0; j < rows.columns; j += period) {
      if (rows.inner == 1) {
        for (int64_t c = 0; c < rows.channels; ++c) sums[c] += values[j + c];
      } else {
        for (int64_t c = 0; c < rows.channels; ++c) {
          for (int64_t i = 0; i < rows.inner; ++i) sums[c] += values[j + c * rows.inner + i];
        }
      }
    }
    for (int64_t j = 0; j < rows.columns; ++j) values[j] = A(0);
  }
};

template <int kCount>
struct RowCount {
  static constexpr int value = kCount;
};

/// body(element of the first row, RowCount, columns): four rows at a time, so that what belongs to a column is loaded
/// once for all four; after every kBlockRows rows, and at the end, flush().
template <class Body, class Flush>
MY_OPS_INLINE void for_row_blocks(const Rows& rows, int64_t block_rows, Body body, Flush flush) {
  int64_t row = 0;
  while (row < rows.count) {
    const int64_t end = rows.count - row < block_rows ? rows.count : row + block_rows;
    for (; row + 4 <= end; row += 4) body(rows.offset + row * rows.stride, RowCount<4>{}, rows.columns);
    for (; row < end; ++row) body(rows.offset + row * rows.stride, RowCount<1>{}, rows.columns);
    flush();
  }
  if (rows.rest > 0) {
    body(rows.offset + rows.count * rows.stride, RowCount<1>{}, rows.rest);
    flush();
  }
}

/// body(element of the first column, columns) for each row: a streamed line of memory is filled at once.
template <class Body>
MY_OPS_INLINE void for_rows(const Rows& rows, Body body) {
  for (int64_t row = 0; row < rows.count; ++row) body(rows.offset + row * rows.stride, rows.columns);
  if (rows.rest > 0) body(rows.offset + rows.count * rows.stride, rows.rest);
}

}  // namespace
}  // namespace my_ops::cpu
