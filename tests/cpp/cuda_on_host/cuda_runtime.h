// CUDA C++ for a host compiler: the keywords, the built-in variables and the functions that the kernels use.
#pragma once

#include <cmath>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__

namespace cuda_on_host {
struct Index {
  unsigned x = 0;
};
}  // namespace cuda_on_host
extern cuda_on_host::Index threadIdx;
extern cuda_on_host::Index blockIdx;
extern cuda_on_host::Index blockDim;
extern cuda_on_host::Index gridDim;

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void __syncthreads() { cuda_on_host::sync_block(); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = cuda_on_host::exchange(mask, bits, distance);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void atomicOr(unsigned* word, unsigned bits) { *word |= bits; }
