// The part of the CUDA runtime that my_ops uses, on the host: a launch runs every thread of the grid as a fiber.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

using cudaError_t = int;
using cudaStream_t = void*;
inline constexpr cudaError_t cudaSuccess = 0;

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin
};
/// A Hopper GPU with few multiprocessors, so that small tensors fill it.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrComputeCapabilityMajor ? 9 : which == cudaDevAttrMultiProcessorCount ? 6 : 227 << 10;
  return cudaSuccess;
}

struct dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
  dim3() = default;
  explicit dim3(unsigned x) : x(x) {}
};

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
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

/// Runs `thread` for every thread of the grid; the blocks of a cluster at the same time, clusters one after the other.
/// Within a cluster, the order of the threads between barriers is reversed from launch to launch. Aborts on a deadlock.
void run(const cudaLaunchConfig_t& config, unsigned cluster, const std::function<void()>& thread);

void sync_block();
void sync_cluster();

/// The value that lane (own lane ^ distance) passes; all lanes in `mask` must call it.
uint64_t exchange(uint32_t mask, uint64_t value, int distance);

/// Dynamic shared memory of this thread's block, or of another one in its cluster. Poisoned at launch.
unsigned char* shared_memory();
ptrdiff_t shared_memory_offset(int rank);

}  // namespace cuda_on_host

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const unsigned cluster = config->numAttrs == 1 ? config->attrs->val.clusterDim.x : 1;
  cuda_on_host::run(*config, cluster, [&] { kernel(arguments...); });
  return cudaSuccess;
}
