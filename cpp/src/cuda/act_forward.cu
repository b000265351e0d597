// Launchers of forward with a residual and an activation. Bytes moved, with x of B bytes: those of forward.cu, B more
// for a residual, and one bit per value for a mask.
#include "cuda/act.cuh"

namespace my_ops::cuda {
namespace {

template <class T>
ForwardMap<T, Activated<T>> map_of(const Affines& affine, const Epilogue& epilogue, const Tiling& tiling) {
  return {affine, activated<T>(epilogue, tiling)};
}

/// The conclusion reads the counter for the cumulative average; it is then incremented behind it.
cudaError_t fused_forward(const Launch& to, const ForwardTraining& a, const Epilogue& epilogue) {
  const ForwardConclusion conclusion{{}, a.running, a.eps, a.save_mean, a.save_invstd};
  const cudaError_t error = visit(to.type, to.plan.tiling, [&](auto element, auto width) {
    using T = decltype(element);
    using W = decltype(width);
    if constexpr (kFuses<T, W>) {
      return launch_fused<T, W>(to, inputs_of<T>(a.x), a.y, MomentsReduction<T>{}, conclusion,
                                map_of<T>(a.affine, epilogue, to.plan.tiling), a.workspace,
                                a.running.cumulative ? nullptr : a.running.counter);
    } else {
      return cudaErrorInvalidValue;
    }
  });
  return error == cudaSuccess && a.running.cumulative ? increment(a.running.counter, nullptr, to.stream) : error;
}

}  // namespace

cudaError_t act_forward_training(const Launch& to, const ForwardTraining& a, const Epilogue& epilogue) {
  if (to.plan.family != Family::stream) return fused_forward(to, a, epilogue);
  if (const cudaError_t error = forward_statistics(to, a); error != cudaSuccess) return error;
  const Statistics statistics = statistics_in(a.workspace, to.plan);
  Apply second{a.x, a.y, a.affine, statistics.mean, statistics.invstd, /*spread_is_invstd=*/true};
  second.counter = a.running.counter;
  return act_apply(to, second, epilogue);
}

cudaError_t act_apply(const Launch& to, const Apply& a, const Epilogue& epilogue) {
  const GivenStatistics source{a.mean, a.spread, a.spread_is_invstd, a.eps, a.save_mean, a.save_invstd};
  return visit(to.type, to.plan.tiling, [&](auto element, auto width) {
    using T = decltype(element);
    return launch_map<T, decltype(width)>(to, inputs_of<T>(a.x), a.y, map_of<T>(a.affine, epilogue, to.plan.tiling),
                                          source, a.counter);
  });
}

}  // namespace my_ops::cuda
