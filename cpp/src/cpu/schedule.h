// Who does which region when. Two orders of the same work, with the same bits:
//
//   by group   each thread takes a group of channels through reduce, finish and map, while its data is in the cache
//   by phase   all threads reduce, then finish, then map: for few groups
//
// Maps go backwards: what was read last is still in the cache.
#pragma once

#include <ATen/Parallel.h>

#include "plan/partition.h"

namespace my_ops::cpu {

using plan::Partition;
using plan::Region;

/// Below this many elements a second thread costs more than it brings.
inline constexpr int64_t kParallelElements = 32768;

/// Channels to finish, likewise.
inline constexpr int64_t kFinishedChannels = 512;

inline int64_t grain(const Partition& part, int64_t tasks) {
  return part.results() * part.values < kParallelElements ? tasks : 1;
}

enum class Order { forwards, backwards };

/// body(region, chunk) for all regions, in memory order within a thread.
template <class Body>
void for_regions(const Partition& part, Order order, Body body) {
  const int64_t groups = part.groups();
  const int64_t tasks = groups * part.chunks();
  at::parallel_for(0, tasks, grain(part, tasks), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t task = order == Order::forwards ? i : begin + end - 1 - i;
      body(part.region(task % groups, task / groups), task / groups);
    }
  });
}

/// finish(c0, c1) for all channels, those of each image behind those of the one before.
template <class Finish>
void for_channels(const Partition& part, Finish finish) {
  at::parallel_for(0, part.results(), kFinishedChannels, [&](int64_t c0, int64_t c1) { finish(c0, c1); });
}

/// reduce(region, chunk) everywhere, and finish(c0, c1) once all chunks of these channels are reduced.
template <class Reduce, class Finish>
void reduce(const Partition& part, Reduce reduce_region, Finish finish) {
  for_regions(part, Order::forwards, reduce_region);
  for_channels(part, finish);
}

/// reduce, then map(region) everywhere.
template <class Reduce, class Finish, class Map>
void reduce_and_map(const Partition& part, Reduce reduce_region, Finish finish, Map map) {
  const int64_t groups = part.groups();
  const int64_t chunks = part.chunks();
  const int64_t threads = at::get_num_threads();
  const bool by_group = groups >= 4 * threads || groups % threads == 0;
  if (!by_group) {
    reduce(part, reduce_region, finish);
    for_regions(part, Order::backwards, [&](const Region& region, int64_t) { map(region); });
    return;
  }
  at::parallel_for(0, groups, grain(part, groups), [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      for (int64_t k = 0; k < chunks; ++k) reduce_region(part.region(g, k), k);
      const Region last = part.region(g, chunks - 1);
      finish(part.first_result(last) + last.c0, part.first_result(last) + last.c1);
      for (int64_t k = chunks - 1; k >= 0; --k) map(part.region(g, k));
    }
  });
}

}  // namespace my_ops::cpu
