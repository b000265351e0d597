// From run-time facts to a kernel instance and its launch.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/fused.cuh"
#include "cuda/stream.cuh"

namespace my_ops::cuda {

struct Grid {
  int64_t blocks;
  int32_t threads;
  int64_t shared_bytes;
  int32_t cluster = 1;
};

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Grid& grid, cudaStream_t stream, Arguments... arguments) {
  constexpr int64_t kDefaultShared = 48 << 10;
  if (grid.shared_bytes > kDefaultShared) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(grid.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(grid.cluster);
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.blocks));
  config.blockDim = dim3(static_cast<unsigned>(grid.threads));
  config.dynamicSmemBytes = static_cast<size_t>(grid.shared_bytes);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = grid.cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
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

inline Grid grid_of_tiles(const Tiling& tiling, int32_t element_bytes) {
  return {tiling.tiles(), tiling.threads(), scratch_bytes(tiling, element_bytes)};
}

/// The workspace: partial results of tiles, then summaries of channels.
inline Partial* parts_of(void* workspace) { return static_cast<Partial*>(workspace); }
inline Summary* summaries_of(void* workspace, const Tiling& tiling) {
  return reinterpret_cast<Summary*>(parts_of(workspace) + tiling.channels * tiling.most_parts());
}

template <class Conclusion, class Parts>
cudaError_t launch_join(const Parts& parts, int64_t channels, const Conclusion& conclusion, Summary* summaries,
                        cudaStream_t stream) {
  const Grid grid{(channels * 32 + kJoinThreads - 1) / kJoinThreads, kJoinThreads, 0};
  return launch(&join_kernel<Conclusion, Parts>, grid, stream, parts, channels, conclusion, summaries);
}

/// Reduces all tiles and concludes for every channel.
template <class T, class W, class Reduction, class Conclusion>
cudaError_t launch_reduction(const Launch& to, const Inputs<T>& in, const Reduction& reduction,
                             const Conclusion& conclusion, void* workspace) {
  const Tiling& tiling = to.plan.tiling;
  const TileParts parts{parts_of(workspace), tiling};
  const cudaError_t error = launch(&reduce_kernel<T, W::V, W::E, Reduction>, grid_of_tiles(tiling, sizeof(T)),
                                   to.stream, in, parts, reduction);
  if (error != cudaSuccess) return error;
  return launch_join(parts, tiling.channels, conclusion, summaries_of(workspace, tiling), to.stream);
}

template <class T, class W, class Map, class Source>
cudaError_t launch_map(const Launch& to, const Inputs<T>& in, void* out, const Map& map, const Source& source,
                       int64_t* counter = nullptr) {
  const Tiling& tiling = to.plan.tiling;
  return launch(&map_kernel<T, W::V, W::E, Map, Source>, grid_of_tiles(tiling, sizeof(T)), to.stream, in,
                static_cast<T*>(out), tiling, map, source, counter);
}

/// Both passes in the family of the plan. `counter`: incremented, if given; the conclusion must not read it.
template <class T, class W, class Reduction, class Conclusion, class Map>
cudaError_t launch_whole(const Launch& to, const Inputs<T>& in, void* out, const Reduction& reduction,
                         const Conclusion& conclusion, const Map& map, void* workspace, int64_t* counter = nullptr) {
  const Tiling& tiling = to.plan.tiling;
  if constexpr (sizeof(T) < 8 && W::V > 1) {
    if (to.plan.family == Family::fused) {
      const int64_t shared = stash_bytes(tiling, sizeof(T), Reduction::kInputs) + scratch_bytes(tiling, sizeof(T));
      const Grid grid{tiling.strips() * to.plan.team, tiling.threads(), shared, to.plan.team};
      return launch(&fused_kernel<T, W::V, W::E, Reduction, Conclusion, Map>, grid, to.stream, in, static_cast<T*>(out),
                    tiling, to.plan.team, reduction, conclusion, map, counter);
    }
  }
  const cudaError_t error = launch_reduction<T, W>(to, in, reduction, conclusion, workspace);
  if (error != cudaSuccess) return error;
  return launch_map<T, W>(to, in, out, map, JoinedSummaries{summaries_of(workspace, tiling)}, counter);
}

}  // namespace my_ops::cuda
