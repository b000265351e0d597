// Launchers of backward and its phases. Bytes moved, with x of B bytes: fused 3 B, stream 5 B (the second reads partly
// from the L2 cache), eval 3 B, and 2 B without gradients of gamma and beta.
#include <algorithm>

#include "cuda/backward.cuh"
#include "cuda/launch.cuh"

namespace my_ops::cuda {
namespace {

template <class T>
GradientReduction<T, Plain<T>> reduction_of(const Backward& a) {
  return {a.mean, a.invstd, {}};
}

GradientConclusion conclusion_of(const Backward& a) { return {a.sum_dy, a.sum_dy_xhat}; }

bool wants_sums(const Backward& a) { return a.sum_dy.data != nullptr || a.sum_dy_xhat.data != nullptr; }

template <class T>
BackwardMap<T, Plain<T>> map_of(const Backward& a) {
  return {a.gamma, a.mean, a.invstd, a.count, a.count_on_device, {}};
}

/// An instance of a fused kernel: all have the same bounds, and the occupancy at the most shared memory is theirs.
using AnyReduction = GradientReduction<float16, Plain<float16>>;
using AnyMap = BackwardMap<float16, Plain<float16>>;
constexpr auto kAnyFused = &fused_kernel<float16, 8, 8, AnyReduction, GradientConclusion, AnyMap>;
constexpr auto kAnyRounds = &fused_rounds_kernel<float16, 8, 8, AnyReduction, GradientConclusion, AnyMap>;

int32_t largest_cluster(int32_t multiprocessors, int32_t shared_bytes) {
  constexpr int32_t kPortable = 8;
  if (allow_all_shared_memory<kAnyFused>() != cudaSuccess) return 1;
  for (int32_t team = kPortable; team > 1; team /= 2) {
    const Configuration configuration({team, kFusedThreads, shared_bytes, team}, nullptr);
    int clusters = 0;
    const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, kAnyFused, configuration.get());
    if (error == cudaSuccess && 4 * clusters * team >= 3 * multiprocessors) return team;
  }
  return 1;
}

int32_t resident_ctas(int32_t multiprocessors, int32_t shared_bytes) {
  int per_multiprocessor = 0;
  const bool known = allow_all_shared_memory<kAnyRounds>() == cudaSuccess &&
                     cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kAnyRounds, kFusedThreads,
                                                                   static_cast<size_t>(shared_bytes)) == cudaSuccess;
  return known ? per_multiprocessor * multiprocessors : 0;
}

}  // namespace

FusedLimits fused_limits(int32_t multiprocessors, int32_t shared_bytes) {
  const int32_t most = std::min(shared_bytes, kFusedSharedBytes);
  const FusedLimits limits{largest_cluster(multiprocessors, most), resident_ctas(multiprocessors, most)};
  static_cast<void>(cudaGetLastError());  // a device without such launches may say so by an error, which is none here
  return limits;
}

cudaError_t backward_training(const Launch& to, const Backward& a) {
  return visit(to.type, to.plan.tiling, [&](auto element, auto width) {
    using T = decltype(element);
    return launch_whole<T, decltype(width)>(to, inputs_of<T>(a.x, a.dy), a.dx, reduction_of<T>(a), conclusion_of(a),
                                            map_of<T>(a), a.workspace);
  });
}

cudaError_t backward_reduce(const Launch& to, const Backward& a) {
  return visit(to.type, to.plan.tiling, [&](auto element, auto width) {
    using T = decltype(element);
    return launch_reduction<T, decltype(width)>(to, inputs_of<T>(a.x, a.dy), reduction_of<T>(a), conclusion_of(a),
                                                a.workspace);
  });
}

cudaError_t backward_eval(const Launch& to, const Backward& a) {
  return visit(to.type, to.plan.tiling, [&](auto element, auto width) {
    using T = decltype(element);
    using W = decltype(width);
    const BackwardEvalMap<T> map{a.gamma, a.invstd, {}};
    if (wants_sums(a)) {
      return launch_reduction<T, W>(to, inputs_of<T>(a.x, a.dy), reduction_of<T>(a), conclusion_of(a), a.workspace,
                                    a.dx, map);
    }
    return launch_map<T, W>(to, inputs_of<T>(a.dy), a.dx, map, NoSummaries{});
  });
}

cudaError_t backward_apply(const Launch& to, const Backward& a) {
  return visit(to.type, to.plan.tiling, [&](auto element, auto width) {
    using T = decltype(element);
    return launch_map<T, decltype(width)>(to, inputs_of<T>(a.x, a.dy), a.dx, map_of<T>(a),
                                          GivenSummaries{a.sum_dy, a.sum_dy_xhat});
  });
}

}  // namespace my_ops::cuda
