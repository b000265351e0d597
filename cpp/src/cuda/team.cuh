// The CTAs that share a strip: one alone, or a thread block cluster (sm_90 and later), whose members read each other's
// shared memory.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace my_ops::cuda {

/// A member's view of its team; size 1 needs no cluster launch. A member's rank is its chunk of the strip.
class Team {
 public:
  __device__ explicit Team(int32_t size) : size_(size) {}

  __device__ int32_t size() const { return size_; }

  /// Waits for all threads of all members; what they wrote to shared memory before is visible behind it.
  __device__ void sync() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (size_ > 1) {
      cooperative_groups::this_cluster().sync();
      return;
    }
#endif
    __syncthreads();
  }

  /// The address, in the shared memory of member `rank`, that corresponds to `mine`. To be read only between two
  /// sync(): before the first it may not be written yet, behind the second its owner may be gone.
  template <class E>
  __device__ const E* of(int32_t rank, E* mine) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (size_ > 1) return cooperative_groups::this_cluster().map_shared_rank(mine, rank);
#endif
    return mine;
  }

 private:
  int32_t size_;
};

}  // namespace my_ops::cuda
