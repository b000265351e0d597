// How the CPU cuts a batch normalization into regions. The cut depends on the shape alone, never on the number of
// threads, and partial sums are merged in the order of their chunks: so results have the same bits for any number of
// threads.
#pragma once

#include "plan/shape.h"

namespace my_ops::plan {

/// Contiguous runs shorter than this many values are walked like rows of a channels-last tensor: one row per image, its
/// columns the (channel, position) pairs. A vector then spans channels instead of being mostly empty.
inline constexpr int64_t kShortRun = 256;

/// The same of a single image, where what a row prepares per column is used only once.
inline constexpr int64_t kShortRunOfOneImage = 8;

/// Columns of a region that is walked by rows, at most: their accumulators and coefficients stay in the L1 cache.
inline constexpr int64_t kMaxColumns = 2048;

/// Stretches of memory that are walked together: of several images, or rows of several parts of a region.
inline constexpr int64_t kSideBySide = 4;

/// Channels of a region that is walked by runs, at most.
inline constexpr int64_t kMaxRunGroup = 64;

/// True if regions are walked by rows (columns across channels), false if by runs (one channel after the other).
/// Static: each instruction set keeps a copy of its own.
static inline bool by_rows(const Shape& shape) {
  const int64_t short_run = shape.n == 1 ? kShortRunOfOneImage : kShortRun;
  return shape.layout == Layout::channels_last || shape.s < short_run;
}

/// Bytes of a short run from which on a region of many may be mapped in memory order: three vectors at least, so that
/// those that hold values of two channels are the fewer.
inline constexpr int64_t kOrderedRun = 192;

/// True if regions of so many channels are mapped in memory order instead of by rows, of which they have too many
/// columns: short runs behind each other, whose coefficients are loaded once per run.
static inline bool in_order(const Shape& shape, int64_t channels, int64_t element_size) {
  return shape.layout == Layout::contiguous && by_rows(shape) && shape.s * element_size >= kOrderedRun &&
         channels * shape.s > kMaxColumns;
}

/// A grid of regions: groups of adjacent channels times chunks of their values. Problems side by side, as the images of
/// a channels-last instance norm are, have groups of their own.
struct Partition {
  int64_t channels;    // C
  int64_t values;      // M
  int64_t group;       // channels per group
  int64_t chunk;       // values per chunk; whole images where a group has several channels
  int64_t images = 1;  // problems of M values per channel, one behind the other

  int64_t groups() const { return images * groups_of_image(); }
  int64_t groups_of_image() const { return (channels + group - 1) / group; }
  int64_t chunks() const { return (values + chunk - 1) / chunk; }
  /// Results per channel: C for each image.
  int64_t results() const { return images * channels; }
  /// Where those of the region's image begin.
  int64_t first_result(const Region& region) const { return region.image * channels; }
  Region region(int64_t group_index, int64_t chunk_index) const;
};

/// For passes that reduce, then map: few channels per group, so that the second pass finds the group in the cache.
/// bytes_per_value: of all tensors that are read (x, or dy and x).
Partition reduction_partition(const Shape& shape, int64_t bytes_per_value);

/// For passes that map element by element: regions follow each other in memory.
Partition elementwise_partition(const Shape& shape, int64_t element_size);

/// For passes that map one tensor by coefficients that are there already.
Partition apply_partition(const Shape& shape, int64_t element_size);

/// reduction_partition of every image by itself.
Partition instance_partition(const Shape& shape, int64_t bytes_per_value);

}  // namespace my_ops::plan
