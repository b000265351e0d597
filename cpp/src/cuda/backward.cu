// Launchers of backward and its phases. Bytes moved, with x of B bytes: fused 3 B, stream 5 B (the second reads partly
// from the L2 cache), eval without gradients of gamma and beta 2 B.
#include "cuda/backward.cuh"
#include "cuda/launch.cuh"

namespace my_ops::cuda {
namespace {

template <class T>
GradientReduction<T> reduction_of(const Backward& a) {
  return {a.mean, a.invstd};
}

GradientConclusion conclusion_of(const Backward& a) { return {a.sum_dy, a.sum_dy_xhat}; }

template <class T>
BackwardMap<T> map_of(const Backward& a) {
  return {a.gamma, a.mean, a.invstd, a.count, a.count_on_device};
}

}  // namespace

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
    return launch_map<T, decltype(width)>(to, inputs_of<T>(a.dy), a.dx, BackwardEvalMap<T>{a.gamma, a.invstd},
                                          NoSummaries{});
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
