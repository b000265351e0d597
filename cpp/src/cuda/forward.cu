// Launchers of forward and its phases. Bytes moved, with x of B bytes: fused 2 B, stream 3 B (the second read partly
// from the L2 cache), given statistics 2 B.
#include "cuda/forward.cuh"
#include "cuda/launch.cuh"

namespace my_ops::cuda {
namespace {

/// Statistics of R parts: [R, C] each, and [R].
template <class A>
struct GivenParts {
  const A* mean;
  const A* m2;
  const int64_t* counts;
  int64_t parts;
  int64_t channels;

  __device__ int64_t count(int64_t) const { return parts; }
  __device__ Partial operator()(int64_t channel, int64_t part) const {
    const int64_t i = part * channels + channel;
    return {static_cast<double>(mean[i]), static_cast<double>(m2[i]), counts[part]};
  }
};

__global__ void increment_kernel(int64_t* counter, const int64_t* values) {
  if (values == nullptr || *values > 0) ++*counter;
}

template <class T>
ForwardMap<T, Plain<T>> map_of(const Affines& affine) {
  return {affine, {}};
}

}  // namespace

int64_t workspace_bytes(const LaunchPlan& plan) {
  const Tiling& tiling = plan.tiling;
  if (plan.family == Family::fused) return 0;
  if (plan.family == Family::grid) {
    return tiling.strips() * plan.team * tiling.most_channels() * static_cast<int64_t>(sizeof(Partial));
  }
  return tiling.channels * static_cast<int64_t>(tiling.most_parts() * sizeof(Partial) + sizeof(Summary));
}

cudaError_t increment(int64_t* counter, const int64_t* values, cudaStream_t stream) {
  if (counter == nullptr) return cudaSuccess;
  return launch<&increment_kernel>(Grid{1, 1, 0}, stream, counter, values);
}

cudaError_t forward_training(const Launch& to, const ForwardTraining& a) {
  const ForwardConclusion conclusion{{}, a.running, a.eps, a.save_mean, a.save_invstd};
  // The kernels that conclude read the counter for the cumulative average; it is then incremented behind them.
  const bool apart = a.running.cumulative && to.plan.family != Family::stream;
  const cudaError_t error = visit(to.type, to.plan.tiling, [&](auto element, auto width) {
    using T = decltype(element);
    return launch_whole<T, decltype(width)>(to, inputs_of<T>(a.x), a.y, MomentsReduction<T>{}, conclusion,
                                            map_of<T>(a.affine), a.workspace, apart ? nullptr : a.running.counter);
  });
  return error == cudaSuccess && apart ? increment(a.running.counter, nullptr, to.stream) : error;
}

cudaError_t forward_statistics(const Launch& to, const ForwardTraining& a) {
  const ForwardConclusion conclusion{{}, a.running, a.eps, a.save_mean, a.save_invstd};
  return visit(to.type, to.plan.tiling, [&](auto element, auto width) {
    using T = decltype(element);
    return launch_reduction<T, decltype(width)>(to, inputs_of<T>(a.x), MomentsReduction<T>{}, conclusion, a.workspace);
  });
}

Statistics statistics_in(void* workspace, const LaunchPlan& plan) {
  Summary* summaries = summaries_of(workspace, plan.tiling);
  return {vector_of(&summaries->first), vector_of(&summaries->second)};
}

cudaError_t apply(const Launch& to, const Apply& a) {
  const GivenStatistics source{a.mean, a.spread, a.spread_is_invstd, a.eps, a.save_mean, a.save_invstd};
  return visit(to.type, to.plan.tiling, [&](auto element, auto width) {
    using T = decltype(element);
    return launch_map<T, decltype(width)>(to, inputs_of<T>(a.x), a.y, map_of<T>(a.affine), source, a.counter);
  });
}

cudaError_t stats(const Launch& to, const Stats& a) {
  return visit(to.type, to.plan.tiling, [&](auto element, auto width) {
    using T = decltype(element);
    return launch_reduction<T, decltype(width)>(to, inputs_of<T>(a.x), MomentsReduction<T>{},
                                                StatsConclusion{{}, a.mean, a.m2}, a.workspace);
  });
}

cudaError_t gather_stats(ElementType accumulator, const GatherStats& a, cudaStream_t stream) {
  const ForwardConclusion conclusion{{}, a.running, a.eps, a.out_mean, a.out_invstd};
  const auto join = [&](auto element) {
    using A = decltype(element);
    const GivenParts<A> parts{static_cast<const A*>(a.mean), static_cast<const A*>(a.m2), a.count, a.parts, a.channels};
    return launch_join(parts, a.channels, conclusion, nullptr, stream);
  };
  cudaError_t error = cudaSuccess;
  if (a.channels > 0) error = accumulator == ElementType::float64 ? join(double{}) : join(float{});
  return error == cudaSuccess ? increment(a.running.counter, a.total, stream) : error;
}

}  // namespace my_ops::cuda
