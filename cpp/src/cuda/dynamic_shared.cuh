#pragma once

#include <cuda_runtime.h>

namespace my_ops::cuda {

/// Dynamic shared memory, aligned to 16 bytes.
__device__ __forceinline__ unsigned char* shared_memory() {
  extern __shared__ uint4 memory[];
  return reinterpret_cast<unsigned char*>(memory);
}

}  // namespace my_ops::cuda
