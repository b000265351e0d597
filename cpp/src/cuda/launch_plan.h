// Which kernels serve a problem, and with which grid: a function of the shape, the element type and the device alone,
// so that the same call always adds in the same order. Plain C++, tested without a GPU.
#pragma once

#include "cuda/tiling.h"

namespace my_ops::cuda {

/// A CTA of the fused families has no more threads and shared memory than this, and a multiprocessor room for one such.
inline constexpr int32_t kFusedThreads = 512;
inline constexpr int32_t kFusedSharedBytes = 220 << 10;

/// What the plan must know of a GPU.
struct Device {
  int32_t multiprocessors;
  int32_t shared_bytes;    // that one CTA may have, after opting in
  int32_t max_team;        // CTAs in a cluster: up to 8 from sm_90 on, 1 before; 0 forbids the fused family
  int32_t resident = 0;    // of the largest CTAs, on the whole device at once; 0 forbids the grid family
  int64_t grid_bytes = 0;  // that the inputs of the grid family have at least
};

struct Problem {
  plan::Shape shape;
  int32_t element_bytes;
  bool aligned;         // every tensor starts on a multiple of 16 bytes
  bool masked = false;  // a bit per value is written
};

/// stream: one kernel reduces tiles to partial results, one joins these per channel, one maps the tensor.
/// fused: a team of CTAs, one or a cluster, keeps a strip in shared memory: the tensor is read once.
/// grid: the same with teams of any size, some strips after the others.
enum class Family { stream, fused, grid };

struct LaunchPlan {
  Family family;
  Tiling tiling;
  int32_t team = 1;   // CTAs per strip; 1 for stream
  int64_t teams = 0;  // at work at once: one per strip, or fewer for grid; 0 for stream
};

/// `inputs`: tensors that both passes read: 1 forward, 2 backward. What an epilogue reads or writes besides is moved
/// once in every family, and changes none of the choices.
LaunchPlan plan_whole(const Problem& problem, int32_t inputs, const Device& device);

/// Passes over the tensor that reduce, or map element by element.
Tiling plan_stream(const Problem& problem, const Device& device);

/// Bytes of shared memory for the values of a strip that one CTA of the team keeps.
int64_t stash_bytes(const Tiling& tiling, int32_t element_bytes, int32_t inputs);

/// Bytes of shared memory beside the stash: per thread one pair of sums for each channel of a vector, and per channel
/// of the tile its coefficients and partial results.
int64_t scratch_bytes(const Tiling& tiling, int32_t element_bytes);

/// Whether the vectors of a byte of a bitmask, a bit per value in memory order, belong to neighbours in a warp, which
/// always walk together: one of them writes the byte for all.
bool mask_by_bytes(const Tiling& tiling);

/// True if the V columns of a thread always belong to one channel.
inline bool one_channel_per_vector(const Tiling& tiling) { return tiling.inner % tiling.vector == 0; }

}  // namespace my_ops::cuda
