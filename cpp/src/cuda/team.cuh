// The CTAs that share a strip, and how they tell each other their partial results. A member's rank is its chunk of the
// strip. A team offers, for the channel i of the strip, counted from its first:
//
//   mine(i)       where this member leaves its partial result
//   sync()        waits for all threads of all members; what they left is visible behind it
//   of(rank, i)   what another member left; to be read only between sync() and leave()
//   leave()       behind it no member reads what this one left, and every thread of this CTA sees what the CTA has
//                 written to its own shared memory
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/operation.cuh"

// Clusters exist from sm_90 on; elsewhere they are never launched, and must not be compiled.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define MY_OPS_CLUSTERS 1
#else
#define MY_OPS_CLUSTERS 0
#endif

namespace my_ops::cuda {

/// One CTA, or a thread block cluster (sm_90 and later), whose members read each other's shared memory: a member must
/// not end before the others have read its own. One CTA needs no cluster launch.
class ClusterTeam {
 public:
  __device__ ClusterTeam(int32_t size, Partial* shared) : size_(size), shared_(shared) {}

  __device__ int32_t size() const { return size_; }
  __device__ Partial& mine(int32_t i) const { return shared_[i]; }

  __device__ void sync() const {
#if MY_OPS_CLUSTERS
    if (size_ > 1) {
      cooperative_groups::this_cluster().sync();
      return;
    }
#endif
    __syncthreads();
  }

  __device__ const Partial& of(int32_t rank, int32_t i) const {
#if MY_OPS_CLUSTERS
    if (size_ > 1) return *cooperative_groups::this_cluster().map_shared_rank(shared_ + i, rank);
#endif
    return shared_[i];
  }

  __device__ void leave() const { sync(); }

 private:
  int32_t size_;
  Partial* shared_;
};

/// CTAs of a cooperative launch, all of which are resident: `size` of them share a strip, through global memory. sync()
/// waits for the whole grid, all teams. Every strip has slots of its own, so none is written twice in a launch.
class GridTeam {
 public:
  __device__ GridTeam(int32_t size, int32_t rank, Partial* slots, int32_t channels)
      : size_(size), rank_(rank), channels_(channels), slots_(slots) {}

  __device__ int32_t size() const { return size_; }
  __device__ Partial& mine(int32_t i) const { return slots_[rank_ * channels_ + i]; }
  __device__ void sync() const { cooperative_groups::this_grid().sync(); }
  __device__ const Partial& of(int32_t rank, int32_t i) const { return slots_[rank * channels_ + i]; }
  __device__ void leave() const { __syncthreads(); }

 private:
  int32_t size_;
  int32_t rank_;
  int32_t channels_;  // slots of a member
  Partial* slots_;    // [size][channels] of this strip
};

}  // namespace my_ops::cuda
