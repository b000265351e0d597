// The guard of a device that is always there. Behind it, what is registered for CUDA is registered for the CPU.
#pragma once

#include <torch/library.h>

#include "CUDAStream.h"

namespace c10::cuda {
struct CUDAGuard {
  explicit CUDAGuard(c10::Device) {}
};
}  // namespace c10::cuda

#define CUDA CPU
