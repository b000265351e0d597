// First measurements on a new GPU, as JSON on stdout: what our kernels' times are to be judged by. Standalone:
//
//   nvcc -std=c++17 -O3 -arch=native profiling/gpu_facts.cu -o gpu_facts && ./gpu_facts
//
//   bandwidth   GB/s of a copy (1 read, 1 write), of reading alone, and of 2 reads with 1 write, from memory ("cold":
//               every launch elsewhere in an arena larger than the L2 cache) and of the same tensors again ("warm")
//   stripes     GB/s of reading a matrix by stripes of so many bytes, as strips of a channels-last tensor are
//   clusters    how many clusters of T CTAs the device holds at once, by shared memory per CTA
//   barriers    microseconds of an empty kernel, of a cluster barrier, of a grid barrier
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

namespace cg = cooperative_groups;

namespace {

#define CHECK(call)                                                                                  \
  do {                                                                                               \
    const cudaError_t error = (call);                                                                \
    if (error != cudaSuccess) {                                                                      \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error)); \
      std::exit(1);                                                                                  \
    }                                                                                                \
  } while (0)

constexpr int kThreads = 256;
constexpr int kInFlight = 4;  // vectors of 16 bytes that a thread reads before it uses the first

__device__ uint4 operator^(uint4 a, uint4 b) { return {a.x ^ b.x, a.y ^ b.y, a.z ^ b.z, a.w ^ b.w}; }

/// Data without a pattern: zeros can move faster than what networks hold.
__global__ void fill(uint4* data, int64_t vectors) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < vectors; i += step) {
    const auto seed = static_cast<uint32_t>(i) * 0x9e3779b9u;
    data[i] = {seed, (seed ^ seed >> 15) * 0x85ebca6bu, (seed ^ seed >> 13) * 0xc2b2ae35u, seed * seed};
  }
}

/// out = in[0] ^ ... ^ in[kReads-1], `vectors` each; without `out` the result is only looked at.
template <int kReads, bool kWrites>
__global__ void __launch_bounds__(kThreads) stream(const uint4* a, const uint4* b, uint4* out, int64_t vectors) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  uint4 seen{};
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < vectors; i += step * kInFlight) {
    uint4 values[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const int64_t at = i + u * step;
      values[u] = at < vectors ? a[at] : uint4{};
      if (kReads == 2 && at < vectors) values[u] = values[u] ^ b[at];
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      if (kWrites && i + u * step < vectors) out[i + u * step] = values[u];
      seen = seen ^ values[u];
    }
  }
  if (!kWrites && seen.x == 0x5ca1ab1e && seen.y == 0xdecade) *out = seen;  // never, as good as
}

/// A CTA reads one stripe of some rows: threads beside each other as far as the stripe is wide.
__global__ void __launch_bounds__(kThreads) read_stripe(const uint4* in, uint4* out, int pitch, int width, int rows) {
  const int stripes = pitch / width;
  const uint4* base = in + static_cast<int64_t>(blockIdx.x / stripes) * rows * pitch + blockIdx.x % stripes * width;
  const int x = threadIdx.x % width;
  const int height = kThreads / width;
  uint4 seen{};
  for (int row = threadIdx.x / width; row < rows; row += height * kInFlight) {
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      if (row + u * height < rows) seen = seen ^ base[static_cast<int64_t>(row + u * height) * pitch + x];
    }
  }
  if (seen.x == 0x5ca1ab1e && seen.y == 0xdecade) *out = seen;
}

__global__ void nothing() {}

__global__ void grid_barriers(int count) {
  for (int i = 0; i < count; ++i) cg::this_grid().sync();
}

__global__ void cluster_barriers(int count) {
#if __CUDA_ARCH__ >= 900
  for (int i = 0; i < count; ++i) cg::this_cluster().sync();
#endif
}

/// Median milliseconds of launch(i), i = 0, 1, ...
float median_ms(const std::function<void(int)>& launch, int repeats = 21) {
  cudaEvent_t begin, end;
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));
  std::vector<float> times(repeats);
  for (int i = -3; i < repeats; ++i) {
    CHECK(cudaEventRecord(begin));
    launch(i + 3);
    CHECK(cudaEventRecord(end));
    CHECK(cudaGetLastError());
    CHECK(cudaEventSynchronize(end));
    if (i >= 0) CHECK(cudaEventElapsedTime(&times[i], begin, end));
  }
  CHECK(cudaEventDestroy(begin));
  CHECK(cudaEventDestroy(end));
  std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
  return times[repeats / 2];
}

struct Arena {
  uint4* data;
  int64_t vectors;
};

template <int kReads, bool kWrites>
double gigabytes_per_second(const Arena& arena, int64_t bytes, bool warm, int blocks) {
  const int64_t vectors = bytes / 16;
  const int64_t set = vectors * (kReads + 1);
  const int64_t sets = warm ? 1 : std::max<int64_t>(1, arena.vectors / set);
  const float ms = median_ms([&](int i) {
    uint4* base = arena.data + i % sets * set;
    stream<kReads, kWrites><<<blocks, kThreads>>>(base, base + vectors, base + kReads * vectors, vectors);
  });
  return static_cast<double>(bytes) * (kReads + (kWrites ? 1 : 0)) / ms / 1e6;
}

void print_bandwidth(const Arena& arena, int blocks) {
  const char* separator = "";
  std::printf("\"bandwidth\": [");
  for (const int megabytes : {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 800}) {
    const int64_t bytes = megabytes * int64_t{1000000} / 16 * 16;
    for (const bool warm : {false, true}) {
      std::printf("%s\n  {\"megabytes\": %d, \"warm\": %s, \"copy\": %.0f, \"read\": %.0f, \"two_to_one\": %.0f}",
                  separator, megabytes, warm ? "true" : "false",
                  gigabytes_per_second<1, true>(arena, bytes, warm, blocks),
                  gigabytes_per_second<1, false>(arena, bytes, warm, blocks),
                  gigabytes_per_second<2, true>(arena, bytes, warm, blocks));
      separator = ",";
    }
  }
  std::printf("],\n");
}

void print_stripes(const Arena& arena) {
  constexpr int kRows = 2048;
  constexpr int64_t kBytes = int64_t{512} << 20;
  const char* separator = "";
  std::printf("\"stripes\": [");
  for (const int pitch_bytes : {512, 4096}) {
    for (const int width_bytes : {32, 64, 128, 256, 512}) {
      const int pitch = pitch_bytes / 16;
      const int width = width_bytes / 16;
      const auto blocks = static_cast<int>(kBytes / 16 / pitch / kRows * (pitch / width));
      const float ms = median_ms(
          [&](int i) {
            const uint4* base = arena.data + i % 2 * (kBytes / 16);
            read_stripe<<<blocks, kThreads>>>(base, arena.data, pitch, width, kRows);
          },
          11);
      std::printf("%s\n  {\"pitch\": %d, \"width\": %d, \"gigabytes_per_second\": %.0f}", separator, pitch_bytes,
                  width_bytes, kBytes / ms / 1e6);
      separator = ",";
    }
  }
  std::printf("],\n");
}

cudaLaunchConfig_t configuration(int blocks, int threads, size_t shared, cudaLaunchAttribute* attribute, int cluster) {
  attribute->id = cluster > 0 ? cudaLaunchAttributeClusterDimension : cudaLaunchAttributeCooperative;
  if (cluster > 0) {
    attribute->val.clusterDim.x = cluster;
    attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
  } else {
    attribute->val.cooperative = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.attrs = attribute;
  config.numAttrs = 1;
  return config;
}

void print_clusters(int most_shared) {
  const auto kernel = reinterpret_cast<const void*>(cluster_barriers);
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_shared));
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  const char* separator = "";
  std::printf("\"clusters\": [");
  for (const int team : {2, 4, 8, 16}) {
    for (const int kibibytes : {56, 110, 220}) {
      cudaLaunchAttribute attribute{};
      const cudaLaunchConfig_t config =
          configuration(team, kibibytes == 220 ? 512 : 256, size_t(kibibytes) << 10, &attribute, team);
      int clusters = 0;
      if (cudaOccupancyMaxActiveClusters(&clusters, cluster_barriers, &config) != cudaSuccess) {
        cudaGetLastError();
        clusters = -1;  // not possible
      }
      std::printf("%s\n  {\"ctas\": %d, \"kibibytes\": %d, \"clusters\": %d}", separator, team, kibibytes, clusters);
      separator = ",";
    }
  }
  std::printf("],\n");
}

/// Microseconds per launch of an empty kernel, 200 of them in a graph.
double empty_kernel_us() {
  constexpr int kLaunches = 200;
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CHECK(cudaStreamCreate(&stream));
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kLaunches; ++i) nothing<<<1, 32, 0, stream>>>();
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  const float ms = median_ms([&](int) { CHECK(cudaGraphLaunch(executable, nullptr)); });
  CHECK(cudaGraphExecDestroy(executable));
  CHECK(cudaGraphDestroy(graph));
  CHECK(cudaStreamDestroy(stream));
  return ms * 1e3 / kLaunches;
}

/// Microseconds per barrier: what 1000 more of them take.
template <class Kernel>
double barrier_us(Kernel kernel, int blocks, int threads, int cluster) {
  cudaLaunchAttribute attribute{};
  const cudaLaunchConfig_t config = configuration(blocks, threads, 0, &attribute, cluster);
  const auto time = [&](int count) {
    return median_ms([&](int) { CHECK(cudaLaunchKernelEx(&config, kernel, count)); }, 7);
  };
  const float few = time(100);
  return time(1100) - few;
}

void print_barriers(const cudaDeviceProp& device) {
  std::printf("\"barriers\": {\n  \"empty_kernel_us\": %.2f", empty_kernel_us());
  if (device.major >= 9) {
    for (const int team : {2, 4, 8}) {
      const int blocks = device.multiProcessorCount / team * team;
      std::printf(",\n  \"cluster_of_%d_us\": %.3f", team, barrier_us(cluster_barriers, blocks, 512, team));
    }
  }
  std::printf(",\n  \"grid_us\": %.3f\n}\n", barrier_us(grid_barriers, device.multiProcessorCount, 512, 0));
}

}  // namespace

int main() {
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  int driver = 0;
  CHECK(cudaDriverGetVersion(&driver));
  std::printf(
      "{\n\"gpu\": \"%s\", \"multiprocessors\": %d, \"l2_bytes\": %d, \"shared_bytes\": %zu, \"driver_cuda\": %d,\n",
      device.name, device.multiProcessorCount, device.l2CacheSize, device.sharedMemPerBlockOptin, driver);
  Arena arena{nullptr, (int64_t{3} << 30) / 16};
  CHECK(cudaMalloc(&arena.data, arena.vectors * 16));
  fill<<<1024, 256>>>(arena.data, arena.vectors);
  CHECK(cudaGetLastError());
  print_bandwidth(arena, device.multiProcessorCount * 8);
  print_stripes(arena);
  if (device.major >= 9) print_clusters(static_cast<int>(device.sharedMemPerBlockOptin));
  print_barriers(device);
  std::printf("}\n");
  CHECK(cudaFree(arena.data));
  return 0;
}
