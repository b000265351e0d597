// A region seen as rows of columns: one row per position of a channels-last tensor, or one per image of a contiguous
// tensor with short runs. Where a region has all channels, rows that follow each other in memory are joined ("folded")
// until their columns fill whole packs.
#pragma once

#include "cpu/simd/packs.h"
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

/// How many rows to join: the fewest that end on a pack's end, times what makes the row long enough.
MY_OPS_INLINE int64_t fold_factor(int64_t columns, int64_t rows, int64_t pack) {
  int64_t fold = pack / greatest_common_divisor(columns, pack);
  if (fold * columns > plan::kMaxColumns || fold > rows) return 1;
  while (fold * columns * 2 <= kFoldedColumns && fold * 2 <= rows) fold *= 2;
  return fold;
}

template <class T>
MY_OPS_INLINE Rows rows_of(const Shape& shape, const Region& region) {
  const int64_t inner = shape.layout == Layout::channels_last ? 1 : shape.s;
  const int64_t channels = region.c1 - region.c0;
  const int64_t stride = shape.c * inner;
  const int64_t offset = region.b / inner * stride + region.c0 * inner;
  const int64_t columns = channels * inner;
  const int64_t count = (region.e - region.b) / inner;
  if (channels < shape.c) return {offset, stride, columns, count, 0, channels, inner};
  const int64_t fold = fold_factor(columns, count, kPack<T>);
  return {offset, columns * fold, columns * fold, count / fold, count % fold * columns, channels, inner};
}

/// Whether the columns of a channel fill packs of their own, at least so many that a loop over them is worth it.
template <class T>
MY_OPS_INLINE bool in_runs(const Rows& rows) {
  return rows.inner >= 4 * kPack<T>;
}

/// body(c, j, first, last) for the runs of a row: columns j..j+inner-1 of channel c, of which first..last-1 fill packs.
template <class T, class Body>
MY_OPS_INLINE void for_runs(const Rows& rows, int64_t columns, Body body) {
  constexpr int64_t pack = kPack<T>;
  int64_t c = 0;
  for (int64_t j = 0; j < columns; j += rows.inner) {
    body(c, j, (j + pack - 1) / pack * pack, (j + rows.inner) / pack * pack);
    c = c + 1 < rows.channels ? c + 1 : 0;
  }
}

/// A value per channel as a value per column, in lane order, padded with zeros to whole packs. Of a run's packs only
/// the first is there.
template <class T>
struct Columns {
  using A = Accumulator<T>;
  alignas(kVecBytes) A values[plan::kMaxColumns + kPack<T>];

  MY_OPS_INLINE void expand(const Rows& rows, const A* per_channel) {
    if (in_runs<T>(rows)) {
      expand_runs(rows, per_channel);
    } else {
      expand_columns(rows, per_channel);
    }
  }

  MY_OPS_INLINE Pack<T> at(int64_t j) const { return get<T>(values + j); }

 private:
  MY_OPS_INLINE void expand_runs(const Rows& rows, const A* per_channel) {
    for_runs<T>(rows, rows.columns, [&](int64_t c, int64_t j, int64_t first, int64_t last) {
      const Vec<A> v = splat(quiet<T>(per_channel[c]));
      fill(j, first + kPack<T> - j, v);
      fill(last, kPack<T>, v);
    });
    for (int64_t i = rows.columns; i % kPack<T> != 0; ++i) values[i] = A(0);
    for_runs<T>(rows, rows.columns,
                [&](int64_t, int64_t, int64_t, int64_t last) { to_lane_order<T>(values + last, kPack<T>); });
  }

  MY_OPS_INLINE void expand_columns(const Rows& rows, const A* per_channel) {
    const int64_t period = rows.channels * rows.inner;
    for (int64_t j = 0; j < rows.columns; j += period) {
      if (rows.inner == 1) {
        for (int64_t c = 0; c < rows.channels; ++c) values[j + c] = quiet<T>(per_channel[c]);
      } else {
        for (int64_t c = 0; c < rows.channels; ++c)
          fill(j + c * rows.inner, rows.inner, splat(quiet<T>(per_channel[c])));
      }
    }
    for (int64_t i = 0; i < kPack<T>; ++i) values[rows.columns + i] = A(0);
    to_lane_order<T>(values, rows.columns);
  }

  /// In whole vectors: what is too much is written over by the next channel.
  MY_OPS_INLINE void fill(int64_t first, int64_t n, Vec<A> v) {
    for (int64_t i = 0; i < n; i += kLanes<A>) store(values + first + i, All{}, v);
  }
};

/// Sums per column in the accumulation type, in lane order, of a block of rows between begin() and flush(), which adds
/// them to the channels' sums in double. Those of a run's packs are all in the first of them.
template <class T>
struct ColumnSums {
  using A = Accumulator<T>;

  alignas(kVecBytes) A values[plan::kMaxColumns + kPack<T>];
  double* sums;  // [channels]

  MY_OPS_INLINE ColumnSums(const Rows& rows, double* sums) : sums(sums) {
    for (int64_t c = 0; c < rows.channels; ++c) sums[c] = 0;
  }

  MY_OPS_INLINE void begin(const Rows& rows) {
    if (in_runs<T>(rows)) {
      for_runs<T>(rows, rows.columns, [&](int64_t, int64_t, int64_t first, int64_t last) {
        put<T>(values + first, Pack<T>{});
        put<T>(values + last, Pack<T>{});
      });
    } else {
      for (int64_t j = 0; j < rows.columns + kPack<T>; ++j) values[j] = A(0);
    }
  }

  MY_OPS_INLINE void add(int64_t j, Pack<T> v) { put<T>(values + j, get<T>(values + j) + v); }

  MY_OPS_INLINE void flush(const Rows& rows) {
    if (in_runs<T>(rows)) {
      for_runs<T>(rows, rows.columns, [&](int64_t c, int64_t j, int64_t first, int64_t last) {
        const int64_t rest = j + rows.inner - last;
        to_value_order<T>(values + last, rest);
        sums[c] += total(j, first + kPack<T> - j) + total(last, rest);
      });
      return;
    }
    const int64_t period = rows.channels * rows.inner;
    to_value_order<T>(values, rows.columns);
    for (int64_t j = 0; j < rows.columns; j += period) {
      if (rows.inner == 1) {
        for (int64_t c = 0; c < rows.channels; ++c) sums[c] += values[j + c];
      } else {
        for (int64_t c = 0; c < rows.channels; ++c) sums[c] += total(j + c * rows.inner, rows.inner);
      }
    }
  }

 private:
  /// Of columns of one channel, in double from here on.
  MY_OPS_INLINE double total(int64_t first, int64_t n) const {
    using Part = typename VecOf<A, kLanes<double> * sizeof(A)>::type;
    Vec<double> v{};
    int64_t i = 0;
    for (; i + kLanes<double> <= n; i += kLanes<double>) {
      v += __builtin_convertvector(bit_cast_from<Part>(values + first + i), Vec<double>);
    }
    double rest = sum<double>(v);
    for (; i < n; ++i) rest += values[first + i];
    return rest;
  }
};

/// One pack of columns, of whatever channels.
template <class T, class Lanes>
struct OnePack {
  static constexpr int slots = 1;  // accumulators side by side
  int64_t column;                  // the first
  Lanes lanes;

  template <class Body>
  MY_OPS_INLINE void each(Body body) const {
    body(column, lanes);
  }
};

/// Packs of columns of one channel: what Columns hold for the first is right for all, and their sums may go into one.
template <class T, class Full>
struct PacksOfRun {
  static constexpr int slots = kSlots<T>;
  int64_t column;
  int64_t count;

  template <class Body>
  MY_OPS_INLINE void each(Body body) const {
    for (int64_t i = 0; i < count; ++i) body(column + i * kPack<T>, Full{});
  }
};

/// body(packs) for the columns of a row, packs being OnePack or PacksOfRun. What belongs to packs.column is loaded
/// once, and packs.each(body(j, lanes)) goes through their columns.
template <class T, class Full, int kUnrolled, class Body>
MY_OPS_INLINE void for_column_packs(const Rows& rows, int64_t columns, Body body) {
  if (!in_runs<T>(rows)) {
    for_packs<T, Full, kUnrolled>(0, columns,
                                  [&](int64_t j, int, auto lanes) { body(OnePack<T, decltype(lanes)>{j, lanes}); });
    return;
  }
  for_runs<T>(rows, columns, [&](int64_t, int64_t j, int64_t first, int64_t last) {
    body(PacksOfRun<T, Full>{first, (last - first) / kPack<T>});
    if (last == j + rows.inner) return;
    if (columns - last < kPack<T>) {
      body(OnePack<T, First>{last, First{columns - last}});
    } else {
      body(OnePack<T, Full>{last, Full{}});  // of two channels
    }
  });
}

/// Rows that are summed in the accumulation type before the sum goes on in double: 64 terms in each column, each the
/// sum of `many` rows.
template <int64_t many>
constexpr int64_t kBlockRows = 64 * many;

/// begin(), body(element of the first row, SideBySide, columns) for block_rows rows at most, flush(); until all are
/// done. Rows side by side come from different parts of the block, and each part is walked in memory order.
template <int64_t many, class Begin, class Body, class Flush>
MY_OPS_INLINE void for_row_blocks(const Rows& rows, int64_t block_rows, Begin begin, Body body, Flush flush) {
  for (int64_t first = 0; first < rows.count; first += block_rows) {
    const int64_t n = rows.count - first < block_rows ? rows.count - first : block_rows;
    const int64_t part = many > 1 ? n / many : 0;
    const int64_t offset = rows.offset + first * rows.stride;
    begin();
    for (int64_t row = 0; row < part; ++row) {
      body(offset + row * rows.stride, SideBySide<many>{part * rows.stride, 0}, rows.columns);
    }
    for (int64_t row = part * many; row < n; ++row) {
      body(offset + row * rows.stride, SideBySide<1>{0, 0}, rows.columns);
    }
    flush();
  }
  if (rows.rest > 0) {
    begin();
    body(rows.offset + rows.count * rows.stride, SideBySide<1>{0, 0}, rows.rest);
    flush();
  }
}

template <int64_t many, class Body>
MY_OPS_INLINE void for_rows(const Rows& rows, Body body) {
  for_row_blocks<many>(rows, rows.count, [] {}, body, [] {});
}

}  // namespace
}  // namespace my_ops::cpu
