#include "cuda/launch_plan.h"

#include <algorithm>
#include <bit>

namespace my_ops::cuda {
namespace {

constexpr int64_t kVectorBytes = 16;      // the widest load of one thread
constexpr int64_t kStreamThreads = 256;   // of a CTA that streams
constexpr int64_t kResident = 8;          // streaming CTAs per multiprocessor that the grid should fill
constexpr int64_t kMostLanesY = 8;        // leaves 32 threads beside each other: 512 bytes
constexpr int64_t kMinSteps = 4;          // rows per thread at least: as many loads are in flight
constexpr int64_t kWideRun = 64;          // vectors in a run that make a strip of its own worthwhile
constexpr int64_t kHugeRun = 16384;       // values in a run that are walked one by one if they fit no vector
constexpr int64_t kStripBytes = 128;      // of a fused channels-last strip: the unit of the L2 cache
constexpr int64_t kSmallBytes = 2 << 20;  // tensors this small cost launches, not traffic
constexpr int64_t kMaskBits = 8;          // that are written at once; vectors have no more values

/// Shared memory and threads of a fused CTA, from the most to the least comfortable: two or more CTAs fit on a
/// multiprocessor, where the loads of one overlap the exchange of the other, or one large CTA does.
struct Comfort {
  int64_t shared_bytes;
  int64_t threads;
};
constexpr Comfort kComforts[] = {{56 << 10, 256}, {110 << 10, 256}, {kFusedSharedBytes, kFusedThreads}};

// When the grid family pays, in passes over the inputs, for a strip that is too large for a cluster of 8 (1.7 MB). On
// an H200, 132 CTAs of 220 KiB hold 29 MB: a round moves 29 MB in and, forward, as much out, 13.5 us at 4.3 TB/s. One
// grid barrier, in which nothing moves, is part of it; taken as 2 us that makes 2 passes cost 2.3. Stream costs 3, less
// what its second read finds in an L2 cache of L bytes, up to L of it: of inputs of L bytes all, of 2 L half, so 2.5.
// Hence grid_bytes = 2 L: below, stream is about as fast and needs no barrier; far above, grid wins 1.3 times forward,
// and backward (3 passes in a round, against 5) 1.5 times. All of this is counted, not measured.

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t columns_of(const plan::Shape& shape) {
  return shape.layout == plan::Layout::contiguous ? shape.c * shape.s : shape.c;
}

int64_t bytes_of(const Problem& problem) {
  return problem.shape.n * problem.shape.c * problem.shape.s * problem.element_bytes;
}

int64_t inner_of(const plan::Shape& shape) { return shape.layout == plan::Layout::contiguous ? shape.s : 1; }

int32_t vector_of(const Problem& problem, int64_t length) {
  const auto vector = static_cast<int32_t>(kVectorBytes / problem.element_bytes);
  return problem.aligned && length % vector == 0 ? vector : 1;
}

/// Runs long enough to fill most of a CTA, if vectors fit them, or if they are too long for anything else.
bool by_runs(const Problem& problem) {
  const int64_t inner = inner_of(problem.shape);
  if (inner >= kHugeRun) return true;
  const int32_t vector = vector_of(problem, inner);
  const bool best = vector > 1 || vector_of(problem, columns_of(problem.shape)) == 1;
  return best && inner >= kWideRun * vector;
}

/// One strip per channel; runs folded into as few rows of about the same length as `threads` allow.
Tiling tiling_by_runs(const Problem& problem, int64_t threads) {
  const int64_t inner = inner_of(problem.shape);
  const int32_t vector = vector_of(problem, inner);
  const int64_t vectors = divide_up(inner, vector);
  const auto lanes_x = static_cast<int32_t>(divide_up(vectors, divide_up(vectors, threads)));
  const int64_t folds = divide_up(vectors, lanes_x);
  const int64_t rows = problem.shape.n * folds;
  const int64_t lanes_y = folds == 1 ? std::min(threads / lanes_x, rows) : 1;
  return {problem.shape.c,
          inner,
          rows,
          folds,
          rows,
          lanes_x * vector,
          vector,
          lanes_x,
          static_cast<int32_t>(lanes_y),
          true};
}

/// Strips of `lanes_x` vectors.
Tiling tiling_by_columns(const Problem& problem, int32_t vector, int64_t lanes_x, int64_t threads) {
  const int64_t inner = inner_of(problem.shape);
  const int64_t rows = problem.shape.n * problem.shape.s / inner;
  const int64_t lanes_y = std::min(threads / lanes_x, rows);
  const auto span = static_cast<int32_t>(lanes_x * vector);
  return {problem.shape.c,
          inner,
          rows,
          1,
          rows,
          span,
          vector,
          static_cast<int32_t>(lanes_x),
          static_cast<int32_t>(lanes_y),
          false};
}

Tiling stream_by_columns(const Problem& problem) {
  const int64_t columns = columns_of(problem.shape);
  const int32_t vector = vector_of(problem, columns);
  const int64_t vectors = divide_up(columns, vector);
  const int64_t rows = problem.shape.n * problem.shape.s / inner_of(problem.shape);
  // Few rows leave nothing to walk for a second row of threads; many rows are better walked by narrow strips, as are
  // strips of so many channels that their results would fill the shared memory.
  const auto by_rows = std::bit_floor(static_cast<uint64_t>(std::clamp<int64_t>(rows / 16, 1, kMostLanesY)));
  const int64_t lanes_y = inner_of(problem.shape) == 1 ? kMostLanesY : static_cast<int64_t>(by_rows);
  const int64_t lanes_x = divide_up(vectors, divide_up(vectors, kStreamThreads / lanes_y));
  return tiling_by_columns(problem, vector, lanes_x, kStreamThreads);
}

/// Strips of whole channels, whose vectors one CTA can hold side by side; lanes_x = 0 if there are none.
Tiling fused_tiling(const Problem& problem, int64_t threads) {
  const auto vector = static_cast<int32_t>(kVectorBytes / problem.element_bytes);
  const int64_t inner = inner_of(problem.shape);
  if (by_runs(problem)) {
    Tiling tiling = tiling_by_runs(problem, threads);
    if (tiling.vector == 1) tiling.lanes_x = 0;
    return tiling;
  }
  const int64_t whole = problem.masked ? kMaskBits : vector;  // values: bytes of a mask belong to one strip
  int64_t group = whole;                                      // channels: the fewest that fill these and kStripBytes
  while (group % 2 == 0 && group / 2 * inner % whole == 0) group /= 2;
  while (group * inner * problem.element_bytes < kStripBytes && group < problem.shape.c) group *= 2;
  const int64_t lanes_x = group * inner / vector;
  if (vector_of(problem, columns_of(problem.shape)) == 1 || lanes_x > threads) return {};
  return tiling_by_columns(problem, vector, lanes_x, threads);
}

void split_rows(Tiling& tiling, int64_t parts) { tiling.chunk_rows = divide_up(tiling.rows, parts); }

/// The smallest team that fills the device and whose shares fit `most` bytes each; 0 if there is none. The largest need
/// not fill it if the tensor is small, or if it leaves a quarter idle at most: stream reads half as much again.
int32_t team_for(Tiling tiling, const Problem& problem, int32_t inputs, const Device& device, int64_t most) {
  const bool small = bytes_of(problem) <= kSmallBytes;
  const auto largest = static_cast<int32_t>(std::min<int64_t>(device.max_team, tiling.rows));
  for (int32_t team = 1; team <= largest; team *= 2) {
    split_rows(tiling, team);
    const int64_t ctas = tiling.strips() * team;
    const bool last = 2 * team > largest;
    const bool fills = ctas >= device.multiprocessors || (last && (small || 4 * ctas >= 3 * device.multiprocessors));
    const int64_t shared =
        stash_bytes(tiling, problem.element_bytes, inputs) + scratch_bytes(tiling, problem.element_bytes);
    if (fills && shared <= std::min<int64_t>(most, device.shared_bytes)) return team;
  }
  return 0;
}

/// As many teams as have room on the device, each as large as that leaves; no teams if a strip does not fit.
LaunchPlan plan_grid(const Problem& problem, int32_t inputs, const Device& device) {
  Tiling tiling = fused_tiling(problem, kFusedThreads);
  if (tiling.lanes_x == 0) return {Family::grid, tiling};
  const int64_t room = std::min(kFusedSharedBytes, device.shared_bytes) - scratch_bytes(tiling, problem.element_bytes);
  tiling.chunk_rows = tiling.lanes_y;
  const int64_t steps = room / stash_bytes(tiling, problem.element_bytes, inputs);
  if (bytes_of(problem) * inputs < device.grid_bytes || steps < 1) return {Family::grid, tiling};
  const int64_t smallest = divide_up(tiling.rows, steps * tiling.lanes_y);
  const int64_t teams = std::min(device.resident / smallest, tiling.strips());
  if (teams > 0) split_rows(tiling, std::min(device.resident / teams, tiling.rows));
  return {Family::grid, tiling, static_cast<int32_t>(tiling.chunks()), teams};
}

}  // namespace

int64_t stash_bytes(const Tiling& tiling, int32_t element_bytes, int32_t inputs) {
  return tiling.steps() * tiling.threads() * tiling.vector * element_bytes * inputs;
}

int64_t scratch_bytes(const Tiling& tiling, int32_t element_bytes) {
  const int64_t accumulator = element_bytes == 8 ? 8 : 4;
  const int64_t sums_per_thread = one_channel_per_vector(tiling) ? 1 : tiling.vector;
  const int64_t sums = 2 * accumulator * sums_per_thread * tiling.lanes();
  // Seeds take up to four numbers, coefficients six, a partial result 24 bytes; three arrays are aligned to 16 bytes.
  return sums + tiling.most_channels() * (10 * accumulator + 24) + 3 * 16;
}

bool mask_by_bytes(const Tiling& tiling) {
  const int64_t lanes = kMaskBits / tiling.vector;
  return tiling.lanes_x % lanes == 0 && (tiling.runs ? tiling.inner : tiling.pitch()) % kMaskBits == 0;
}

Tiling plan_stream(const Problem& problem, const Device& device) {
  Tiling tiling = by_runs(problem) ? tiling_by_runs(problem, kStreamThreads) : stream_by_columns(problem);
  const int64_t threads = kResident * kStreamThreads * device.multiprocessors;
  const int64_t wanted = divide_up(threads / tiling.threads(), tiling.strips());
  const int64_t possible = divide_up(tiling.rows, tiling.lanes_y * kMinSteps);
  split_rows(tiling, std::clamp<int64_t>(wanted, 1, possible));
  return tiling;
}

LaunchPlan plan_whole(const Problem& problem, int32_t inputs, const Device& device) {
  if (problem.element_bytes < 8 && problem.aligned && device.max_team > 0) {
    for (const Comfort& comfort : kComforts) {
      Tiling tiling = fused_tiling(problem, comfort.threads);
      if (tiling.lanes_x == 0) continue;
      if (const int32_t team = team_for(tiling, problem, inputs, device, comfort.shared_bytes)) {
        split_rows(tiling, team);
        return {Family::fused, tiling, team, tiling.strips()};
      }
    }
  }
  if (problem.element_bytes < 8 && problem.aligned && device.resident > 0) {
    if (const LaunchPlan plan = plan_grid(problem, inputs, device); plan.teams > 0) return plan;
  }
  return {Family::stream, plan_stream(problem, device)};
}

}  // namespace my_ops::cuda
