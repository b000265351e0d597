// Copies from global to shared memory that run behind the thread's back and take no registers (sm_80 and later; before,
// they are done at once). They are committed in groups, which are complete in the order of their commits. What a thread
// has copied itself it may read behind its own wait; for other threads a barrier must follow.
#pragma once

#include <cuda_runtime.h>

namespace my_ops::cuda {

/// 16 bytes, aligned to 16 bytes on both sides.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
#else
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}

/// Everything copied since the last commit is a group.
__device__ __forceinline__ void commit_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

inline constexpr int kMostGroupsBehind = 3;

/// Waits for all groups but the last `behind`, 0 to kMostGroupsBehind.
__device__ __forceinline__ void wait_for_copies(int behind) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  switch (behind) {
    case 0:
      asm volatile("cp.async.wait_group 0;" ::: "memory");
      break;
    case 1:
      asm volatile("cp.async.wait_group 1;" ::: "memory");
      break;
    case 2:
      asm volatile("cp.async.wait_group 2;" ::: "memory");
      break;
    default:
      asm volatile("cp.async.wait_group 3;" ::: "memory");
  }
#endif
}

}  // namespace my_ops::cuda
