// The shared memory of a CTA, handed out in pieces.
#pragma once

#include <cstdint>

#include "cuda/dynamic_shared.cuh"

namespace my_ops::cuda {

/// Hands out consecutive arrays. All threads must ask for the same ones in the same order.
class SharedArrays {
 public:
  __device__ SharedArrays() : next_(shared_memory()) {}

  template <class E>
  __device__ E* take(int64_t count) {
    E* array = reinterpret_cast<E*>(next_);
    next_ += count * static_cast<int64_t>(sizeof(E));
    return array;
  }

  __device__ void align() {
    const auto address = reinterpret_cast<uintptr_t>(next_);
    next_ += (16 - address % 16) % 16;
  }

 private:
  unsigned char* next_;
};

}  // namespace my_ops::cuda
