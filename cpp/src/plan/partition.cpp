#include "plan/partition.h"

#include <algorithm>
#include <numeric>

namespace my_ops::plan {
namespace {

constexpr int64_t kSpan = 16 * 1024;          // bytes in a row that keep the hardware prefetcher going
constexpr int64_t kGroupBytes = 512 * 1024;   // of a group of channels that is to be read again from an L2 cache
constexpr int64_t kRegionElements = 65536;    // per reduction region by runs
constexpr int64_t kRegionBytes = 512 * 1024;  // per region where only the overhead per region matters, at most
constexpr int64_t kLeastElements = 16384;     // per such region, where a small tensor is cut for several threads
constexpr int64_t kMaxRowChunks = 64;         // bounds the cost of merging the chunks' statistics
constexpr int64_t kLeastRows = 256;           // over which the work per channel of a region is spread
constexpr int64_t kShares = 8;                // threads for which parts are even
constexpr int64_t kColumnAlignment = 32;      // columns: whole packs of every type, so that rows can be streamed

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t round_up(int64_t n, int64_t unit) { return divide_up(n, unit) * unit; }

/// A number of parts, rounded up to what 2, 4 and 8 threads can share evenly: of 5 parts, one of two threads does 3.
int64_t shareable(int64_t parts) {
  int64_t unit = 1;
  while (unit < std::min(parts, kShares)) unit *= 2;
  return round_up(parts, unit);
}

/// Splits `total` into a shareable number of parts of at most `most`, as even as multiples of `unit` allow; returns the
/// part.
int64_t even_part(int64_t total, int64_t most, int64_t unit) {
  const int64_t part = divide_up(total, shareable(divide_up(total, most)));
  return std::min({total, most, round_up(part, unit)});
}

/// Of a region where only the overhead per region matters: a quarter of a small tensor.
int64_t region_bytes(const Shape& shape, int64_t bytes_per_value) {
  const int64_t quarter = shape.n * shape.c * shape.s * bytes_per_value / 4;
  return std::clamp(quarter, kLeastElements * bytes_per_value, kRegionBytes);
}

Partition row_partition(const Shape& shape, int64_t bytes_per_value) {
  const int64_t inner = shape.layout == Layout::channels_last ? 1 : shape.s;
  const int64_t rows = shape.n * shape.s / inner;
  const int64_t most = kMaxColumns / inner;
  int64_t aligned = kColumnAlignment / std::gcd(inner, kColumnAlignment);
  while (aligned > most) aligned /= 2;
  const int64_t group = even_part(shape.c, most / aligned * aligned, aligned);
  const int64_t of_bytes = divide_up(region_bytes(shape, bytes_per_value), group * inner * bytes_per_value);
  const int64_t enough = std::max(of_bytes, std::min(kLeastRows, divide_up(rows, kShares)));
  const int64_t whole_packs = kColumnAlignment / std::gcd(shape.c * inner, kColumnAlignment);
  const int64_t most_rows = round_up(std::max(enough, divide_up(rows, kMaxRowChunks)), whole_packs);
  return {shape.c, shape.n * shape.s, group, even_part(rows, most_rows, whole_packs) * inner};
}

/// Whole images that make up about `values` values of one channel, as many as are walked together or a multiple; a part
/// of an image where one holds more.
int64_t chunk_of_images(const Shape& shape, int64_t values) {
  if (shape.s > values) return even_part(shape.n * shape.s, values, kColumnAlignment);
  const int64_t images = values / shape.s;
  const int64_t unit = images < kSideBySide ? 1 : kSideBySide;
  return even_part(shape.n, round_up(images, unit), unit) * shape.s;
}

}  // namespace

Region Partition::region(int64_t group_index, int64_t chunk_index) const {
  const int64_t image = group_index / groups_of_image();
  const int64_t c0 = (group_index - image * groups_of_image()) * group;
  const int64_t first = image * values;
  const int64_t b = chunk_index * chunk;
  return {c0, std::min(channels, c0 + group), first + b, first + std::min(values, b + chunk), image};
}

Partition reduction_partition(const Shape& shape, int64_t bytes_per_value) {
  if (by_rows(shape)) return row_partition(shape, bytes_per_value);
  const int64_t run_bytes = shape.s * bytes_per_value;
  const int64_t in_cache = kGroupBytes / (shape.n * run_bytes);
  const int64_t most = std::clamp<int64_t>(std::min(kSpan / run_bytes, in_cache), 1, kMaxRunGroup);
  const int64_t group = even_part(shape.c, most, 1);
  // Several channels share a region only if their runs are short, and then chunks are whole images.
  const int64_t values = group == 1 ? kRegionElements : std::max(shape.s, kRegionElements / group);
  return {shape.c, shape.n * shape.s, group, chunk_of_images(shape, values)};
}

Partition elementwise_partition(const Shape& shape, int64_t element_size) {
  if (by_rows(shape)) return row_partition(shape, element_size);
  const int64_t run_bytes = shape.s * element_size;
  const int64_t bytes = region_bytes(shape, element_size);
  const int64_t group = even_part(shape.c, divide_up(bytes, run_bytes), 1);
  const int64_t values = bytes / (group * element_size);
  // A part of an image only where a single channel's is large.
  return {shape.c, shape.n * shape.s, group, chunk_of_images(shape, group == 1 ? values : std::max(values, shape.s))};
}

Partition apply_partition(const Shape& shape, int64_t element_size) {
  if (!in_order(shape, shape.c, element_size)) return elementwise_partition(shape, element_size);
  const int64_t most = region_bytes(shape, element_size) / element_size;
  const int64_t image = shape.c * shape.s;
  // Of several images, or of channels of one; each begins with a whole pack of the tensor, if that is possible.
  const auto part = [&](int64_t total, int64_t values) {
    const int64_t unit = kColumnAlignment / std::gcd(values, kColumnAlignment);
    const int64_t parts = most / values;
    return even_part(total, parts < unit ? parts : parts / unit * unit, unit);
  };
  if (image <= most) return {shape.c, shape.n * shape.s, shape.c, part(shape.n, image) * shape.s};
  return {shape.c, shape.n * shape.s, part(shape.c, shape.s), shape.s};
}

Partition instance_partition(const Shape& shape, int64_t bytes_per_value) {
  Partition part = reduction_partition({1, shape.c, shape.s, shape.layout}, bytes_per_value);
  part.images = shape.n;
  return part;
}

}  // namespace my_ops::plan
