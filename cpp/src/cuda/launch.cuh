// From run-time facts to a kernel instance and its launch.
#pragma once

#include <atomic>

#include "cuda/elements.cuh"
#include "cuda/fused.cuh"
#include "cuda/stream.cuh"

namespace my_ops::cuda {

struct Grid {
  int64_t blocks;
  int32_t threads;
  int64_t shared_bytes;
  int32_t cluster = 1;
  bool cooperative = false;
};

/// Lets a kernel use all the shared memory that a CTA of the current device may have. Done once per kernel and device:
/// the limit is a state of the kernel, and setting it to what one launch needs would cut short another host thread's.
template <auto kKernel>
cudaError_t allow_all_shared_memory() {
  static std::atomic<uint64_t> allowed{0};  // one bit per device
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if (error != cudaSuccess || (allowed.load(std::memory_order_acquire) & bit) != 0) return error;
  int bytes = 0;
  error = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  error =
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kKernel), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (error == cudaSuccess) allowed.fetch_or(bit, std::memory_order_release);
  return error;
}

/// A launch as the runtime takes it; points into itself.
class Configuration {
 public:
  Configuration(const Grid& grid, cudaStream_t stream) {
    config_.gridDim = dim3(static_cast<unsigned>(grid.blocks));
    config_.blockDim = dim3(static_cast<unsigned>(grid.threads));
    config_.dynamicSmemBytes = static_cast<size_t>(grid.shared_bytes);
    config_.stream = stream;
    config_.attrs = &attribute_;
    config_.numAttrs = grid.cluster > 1 || grid.cooperative ? 1 : 0;
    if (grid.cooperative) {
      attribute_.id = cudaLaunchAttributeCooperative;
      attribute_.val.cooperative = 1;
    } else {
      attribute_.id = cudaLaunchAttributeClusterDimension;
      attribute_.val.clusterDim.x = static_cast<unsigned>(grid.cluster);
      attribute_.val.clusterDim.y = 1;
      attribute_.val.clusterDim.z = 1;
    }
  }
  Configuration(const Configuration&) = delete;

  const cudaLaunchConfig_t* get() const { return &config_; }

 private:
  cudaLaunchConfig_t config_{};
  cudaLaunchAttribute attribute_{};
};

template <auto kKernel, class... Arguments>
cudaError_t launch(const Grid& grid, cudaStream_t stream, const Arguments&... arguments) {
  constexpr int64_t kDefaultShared = 48 << 10;
  if (grid.shared_bytes > kDefaultShared) {
    if (const cudaError_t error = allow_all_shared_memory<kKernel>(); error != cudaSuccess) return error;
  }
  const Configuration configuration(grid, stream);
  return cudaLaunchKernelEx(configuration.get(), kKernel, arguments...);
}

/// Elements per vector and channels per vector of a thread, as types.
template <int kV, int kE>
struct Width {
  static constexpr int V = kV;
  static constexpr int E = kE;
};

/// f(T{}, Width{}) for the element type and the way the tiling cuts vectors.
template <class F>
cudaError_t visit(ElementType type, const Tiling& tiling, F f) {
  const auto widths = [&](auto element) {
    constexpr int kVector = 16 / sizeof(element);
    if (tiling.vector == 1) return f(element, Width<1, 1>{});
    if (one_channel_per_vector(tiling)) return f(element, Width<kVector, 1>{});
    return f(element, Width<kVector, kVector>{});
  };
  switch (type) {
    case ElementType::float64:
      return widths(double{});
    case ElementType::float32:
      return widths(float{});
    case ElementType::bfloat16:
      return widths(bfloat16{});
    default:
      return widths(float16{});
  }
}

template <class T>
Inputs<T> inputs_of(const void* first, const void* second = nullptr) {
  return {{static_cast<const T*>(first), static_cast<const T*>(second)}};
}

/// One of the two numbers per channel that a join has left in the workspace.
inline Vector vector_of(double* first) { return {first, sizeof(Summary) / sizeof(double), ElementType::float64}; }

inline Grid grid_of_tiles(const Tiling& tiling, int32_t element_bytes) {
  return {tiling.tiles(), tiling.threads(), scratch_bytes(tiling, element_bytes)};
}

/// The workspace: partial results of tiles, then summaries of channels.
inline Partial* parts_of(void* workspace) { return static_cast<Partial*>(workspace); }
inline Summary* summaries_of(void* workspace, const Tiling& tiling) {
  return reinterpret_cast<Summary*>(parts_of(workspace) + tiling.channels * tiling.most_parts());
}

/// num_batches_tracked, where kernels before have read it. `values`: if given and 0, nothing was tracked.
cudaError_t increment(int64_t* counter, const int64_t* values, cudaStream_t stream);

template <class Conclusion, class Parts>
cudaError_t launch_join(const Parts& parts, int64_t channels, const Conclusion& conclusion, Summary* summaries,
                        cudaStream_t stream) {
  const Grid grid{(channels * 32 + kJoinThreads - 1) / kJoinThreads, kJoinThreads, 0};
  return launch<&join_kernel<Conclusion, Parts>>(grid, stream, parts, channels, conclusion, summaries);
}

/// Reduces all tiles and concludes for every channel. A map, if there is one, needs no summary.
template <class T, class W, class Reduction, class Conclusion, class... Map>
cudaError_t launch_reduction(const Launch& to, const Inputs<T>& in, const Reduction& reduction,
                             const Conclusion& conclusion, void* workspace, void* out = nullptr, const Map&... map) {
  const Tiling& tiling = to.plan.tiling;
  const TileParts parts{parts_of(workspace), tiling};
  const Grid grid = grid_of_tiles(tiling, sizeof(T));
  cudaError_t error;
  if constexpr (sizeof...(Map) == 0) {
    error = launch<&reduce_kernel<T, W::V, W::E, Reduction>>(grid, to.stream, in, parts, reduction);
  } else {
    error = launch<&reduce_and_map_kernel<T, W::V, W::E, Reduction, Map...>>(grid, to.stream, in, static_cast<T*>(out),
                                                                             parts, reduction, map...);
  }
  if (error != cudaSuccess) return error;
  return launch_join(parts, tiling.channels, conclusion, summaries_of(workspace, tiling), to.stream);
}

template <class T, class W, class Map, class Source>
cudaError_t launch_map(const Launch& to, const Inputs<T>& in, void* out, const Map& map, const Source& source,
                       int64_t* counter = nullptr) {
  const Tiling& tiling = to.plan.tiling;
  return launch<&map_kernel<T, W::V, W::E, Map, Source>>(grid_of_tiles(tiling, sizeof(T)), to.stream, in,
                                                         static_cast<T*>(out), tiling, map, source, counter);
}

/// Whether there are fused kernels.
template <class T, class W>
inline constexpr bool kFuses = sizeof(T) < 8 && W::V > 1;

/// Both passes in one kernel, by clusters or by the whole grid.
template <class T, class W, class Reduction, class Conclusion, class Map>
cudaError_t launch_fused(const Launch& to, const Inputs<T>& in, void* out, const Reduction& reduction,
                         const Conclusion& conclusion, const Map& map, void* workspace, int64_t* counter) {
  const auto& [family, tiling, team, teams] = to.plan;
  const int64_t shared = stash_bytes(tiling, sizeof(T), Reduction::kInputs) + scratch_bytes(tiling, sizeof(T));
  Grid grid{teams * team, tiling.threads(), shared};
  if (family == Family::fused) {
    grid.cluster = team;
    return launch<&fused_kernel<T, W::V, W::E, Reduction, Conclusion, Map>>(
        grid, to.stream, in, static_cast<T*>(out), tiling, team, reduction, conclusion, map, counter);
  }
  grid.cooperative = true;
  return launch<&fused_rounds_kernel<T, W::V, W::E, Reduction, Conclusion, Map>>(
      grid, to.stream, in, static_cast<T*>(out), tiling, team, reduction, conclusion, map, counter,
      parts_of(workspace));
}

/// Both passes in the family of the plan. `counter`: incremented, if given; the conclusion must not read it.
template <class T, class W, class Reduction, class Conclusion, class Map>
cudaError_t launch_whole(const Launch& to, const Inputs<T>& in, void* out, const Reduction& reduction,
                         const Conclusion& conclusion, const Map& map, void* workspace, int64_t* counter = nullptr) {
  if constexpr (kFuses<T, W>) {
    if (to.plan.family != Family::stream) {
      return launch_fused<T, W>(to, in, out, reduction, conclusion, map, workspace, counter);
    }
  }
  const cudaError_t error = launch_reduction<T, W>(to, in, reduction, conclusion, workspace);
  if (error != cudaSuccess) return error;
  return launch_map<T, W>(to, in, out, map, JoinedSummaries{summaries_of(workspace, to.plan.tiling)}, counter);
}

}  // namespace my_ops::cuda
