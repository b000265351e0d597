// Two doubles per channel and chunk, merged in the order of the chunks.
#pragma once

#include "cpu/elements.h"
#include "plan/partition.h"

namespace my_ops::cpu {

class Partials {
 public:
  explicit Partials(const plan::Partition& part) : part_(part), memory_(2 * part.chunks() * part.results()) {}

  double* first(int64_t chunk) { return memory_ + 2 * chunk * part_.results(); }
  double* second(int64_t chunk) { return first(chunk) + part_.results(); }

  /// (mean, M2) of all chunks of the channels c0..c1-1, in the place of chunk 0.
  void merge_moments(int64_t c0, int64_t c1) {
    for (int64_t chunk = 1, count = values(0); chunk < part_.chunks(); count += values(chunk), ++chunk) {
      kernel_table().merge_moments(first(0) + c0, second(0) + c0, count, first(chunk) + c0, second(chunk) + c0,
                                   values(chunk), c1 - c0);
    }
  }

  /// Both sums over all chunks, in the place of chunk 0.
  void add_up(int64_t c0, int64_t c1) {
    for (int64_t chunk = 1; chunk < part_.chunks(); ++chunk) {
      kernel_table().add(first(0) + c0, first(chunk) + c0, c1 - c0);
      kernel_table().add(second(0) + c0, second(chunk) + c0, c1 - c0);
    }
  }

 private:
  int64_t values(int64_t chunk) const {
    const plan::Region region = part_.region(0, chunk);
    return region.e - region.b;
  }

  plan::Partition part_;
  Scratch<double> memory_;
};

}  // namespace my_ops::cpu
