// How a GPU walks a tensor: as rows and columns, cut into tiles, one per CTA (cooperative thread array: a block). Plain
// index arithmetic for host and device.
//
//   by columns  A row is an image (contiguous) or a position (channels last). Its columns are the C*inner values side
//   by
//               side; column j belongs to channel j / inner. A strip is `span` adjacent columns, of any channels.
//   by runs     For long runs of a contiguous tensor. A strip is one channel; each of its N runs of S values is folded
//               into `folds` rows of `span` columns, the last of them shorter.
//
// A tile is a chunk of the rows of a strip. Within it a thread owns V adjacent columns of every lanes_y-th row, so that
// what belongs to a column stays in its registers.
#pragma once

#include "math/normalization.h"
#include "plan/shape.h"

namespace my_ops::cuda {

/// The rows r0..r1-1 of a strip.
struct Tile {
  int64_t strip;
  int64_t chunk;
  int64_t r0;
  int64_t r1;
};

/// Columns b..e-1, counted from the first one of a strip.
struct Columns {
  int64_t b;
  int64_t e;
};

struct Tiling {
  int64_t channels;    // C
  int64_t inner;       // values of a channel side by side: S, or 1 when channels last
  int64_t rows;        // N * folds, or M when channels last
  int64_t folds;       // rows per run; 1 by columns
  int64_t chunk_rows;  // rows of a tile; the last one of a strip may have fewer
  int32_t span;        // columns of a strip
  int32_t vector;      // V; divides span, pitch() and, by runs, inner
  int32_t lanes_x;     // threads beside each other: span / V
  int32_t lanes_y;     // rows walked at once; 1 where runs are folded
  bool runs;           // by runs, else by columns

  MY_OPS_HOST_DEVICE int64_t pitch() const { return channels * inner; }
  MY_OPS_HOST_DEVICE int64_t strips() const { return runs ? channels : (pitch() + span - 1) / span; }
  MY_OPS_HOST_DEVICE int64_t chunks() const { return (rows + chunk_rows - 1) / chunk_rows; }
  MY_OPS_HOST_DEVICE int64_t tiles() const { return strips() * chunks(); }
  MY_OPS_HOST_DEVICE int32_t lanes() const { return lanes_x * lanes_y; }
  /// Threads of a CTA: whole warps.
  MY_OPS_HOST_DEVICE int32_t threads() const { return (lanes() + 31) / 32 * 32; }
  /// Rows that one thread of a full tile walks.
  MY_OPS_HOST_DEVICE int64_t steps() const { return (chunk_rows + lanes_y - 1) / lanes_y; }

  MY_OPS_HOST_DEVICE Tile tile(int64_t strip, int64_t chunk) const {
    const int64_t r0 = chunk * chunk_rows;
    const int64_t r1 = r0 + chunk_rows < rows ? r0 + chunk_rows : rows;
    return {strip, chunk, r0 < r1 ? r0 : r1, r1};
  }

  MY_OPS_HOST_DEVICE int64_t first_column(int64_t strip) const { return strip * (runs ? inner : span); }
  MY_OPS_HOST_DEVICE int64_t first_channel(int64_t strip) const { return runs ? strip : first_column(strip) / inner; }

  /// The positions of a strip that exist; by runs, position = fold * span + column.
  MY_OPS_HOST_DEVICE int64_t positions(int64_t strip) const {
    if (runs) return inner;
    const int64_t left = pitch() - first_column(strip);
    return left < span ? left : span;
  }

  /// Channels with at least one column in the strip.
  MY_OPS_HOST_DEVICE int32_t channels_of(int64_t strip) const {
    if (runs) return 1;
    const int64_t last = (first_column(strip) + positions(strip) - 1) / inner;
    return static_cast<int32_t>(last - first_channel(strip) + 1);
  }
  /// A bound on channels_of, to size shared memory.
  MY_OPS_HOST_DEVICE int64_t most_channels() const {
    const int64_t most = runs ? 1 : (span - 1) / inner + (inner == 1 ? 1 : 2);
    return most < channels ? most : channels;
  }

  /// Where the channel lies in the strip; by runs in every row but the last fold's, which is shorter.
  MY_OPS_HOST_DEVICE Columns columns_of(int64_t strip, int64_t channel) const {
    if (runs) return {0, span};
    const int64_t b = channel * inner - first_column(strip);
    const int64_t e = b + inner;
    const int64_t end = positions(strip);
    return {b < 0 ? 0 : b, e < end ? e : end};
  }

  /// Values of the channel in the rows r0..r1-1 of the strip.
  MY_OPS_HOST_DEVICE int64_t values(const Tile& tile, int64_t channel) const {
    const Columns columns = columns_of(tile.strip, channel);
    const int64_t per_run = runs ? inner : columns.e - columns.b;
    return values_before(tile.r1, per_run) - values_before(tile.r0, per_run);
  }

  MY_OPS_HOST_DEVICE int64_t element(int64_t strip, int64_t row, int64_t column) const {
    return row / folds * pitch() + first_column(strip) + row % folds * span + column;
  }
  MY_OPS_HOST_DEVICE bool exists(int64_t strip, int64_t row, int64_t column) const {
    return row % folds * span + column < positions(strip);
  }

  /// The strips that a channel lies in, and with the chunks of each the tiles that it is summed up from.
  MY_OPS_HOST_DEVICE int64_t first_strip(int64_t channel) const { return runs ? channel : channel * inner / span; }
  MY_OPS_HOST_DEVICE int64_t strips_of(int64_t channel) const {
    return runs ? 1 : ((channel + 1) * inner - 1) / span - first_strip(channel) + 1;
  }
  MY_OPS_HOST_DEVICE int64_t parts_of(int64_t channel) const { return strips_of(channel) * chunks(); }
  /// A bound on parts_of, to size the workspace.
  MY_OPS_HOST_DEVICE int64_t most_parts() const { return (runs ? 1 : (inner + span - 2) / span + 1) * chunks(); }
  MY_OPS_HOST_DEVICE int64_t part(const Tile& tile, int64_t channel) const {
    return (tile.strip - first_strip(channel)) * chunks() + tile.chunk;
  }
  MY_OPS_HOST_DEVICE Tile tile_of_part(int64_t channel, int64_t part) const {
    return tile(first_strip(channel) + part / chunks(), part % chunks());
  }

 private:
  MY_OPS_HOST_DEVICE int64_t values_before(int64_t row, int64_t per_run) const {
    return row / folds * per_run + row % folds * span;
  }
};

}  // namespace my_ops::cuda
