// The part of the CUDA runtime that my_ops uses, on the host: a launch runs every thread of the grid as a fiber.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

using cudaError_t = int;
using cudaStream_t = void*;
inline constexpr cudaError_t cudaSuccess = 0;
inline constexpr cudaError_t cudaErrorInvalidValue = 1;

inline cudaError_t cudaGetLastError() { return cudaSuccess; }

enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrCooperativeLaunch,
  cudaDevAttrL2CacheSize,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMultiProcessorCount
};
/// A Hopper GPU with few multiprocessors and a small cache, so that small tensors fill it.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  constexpr int kValues[] = {9, 1, 1 << 20, 227 << 10, 6};
  *value = kValues[which];
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

struct dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
  dim3() = default;
  explicit dim3(unsigned x) : x(x) {}
};

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension, cudaLaunchAttributeCooperative };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace cuda_on_host {

/// Runs `thread` for every thread of the grid; the blocks of a cluster at the same time, clusters one after the other;
/// in a cooperative launch all blocks at the same time. Among these, the order of the threads between barriers is
/// reversed from launch to launch. Aborts on a deadlock, and where a GPU would refuse the launch.
void run(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& thread);

/// The shared memory that a launch of the kernel may ask for.
void allow_shared(const void* kernel, int bytes);

void sync_block();
void sync_cluster();
void sync_grid();

/// The value that lane (own lane ^ distance) passes; all lanes in `mask` must call it.
uint64_t exchange(uint32_t mask, uint64_t value, int distance);

/// Copies of this thread that no one sees before it has waited for their group.
void copy_16_bytes_later(void* to, const void* from);
void commit_copies();
void wait_for_copies(int behind);

/// Dynamic shared memory of this thread's block, or of another one in its cluster. Poisoned at launch.
unsigned char* shared_memory();
ptrdiff_t shared_memory_offset(int rank);

}  // namespace cuda_on_host

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int bytes) {
  cuda_on_host::allow_shared(kernel, bytes);
  return cudaSuccess;
}

template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void (*)(Parameters...), const cudaLaunchConfig_t* config) {
  *clusters = 6 / static_cast<int>(config->attrs->val.clusterDim.x);
  return cudaSuccess;
}
template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(Parameters...), int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  cuda_on_host::run(*config, reinterpret_cast<const void*>(kernel), [&] { kernel(arguments...); });
  return cudaSuccess;
}
