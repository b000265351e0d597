// In place of cpp/src/cuda/dynamic_shared.cuh: a host compiler has no dynamic shared memory.
#pragma once

#include <cuda_runtime.h>

namespace my_ops::cuda {

inline unsigned char* shared_memory() { return cuda_on_host::shared_memory(); }

}  // namespace my_ops::cuda
