// Launchers of backward with a residual and an activation. dz = dy * act'(z) is found in the pass that reads dy. Bytes
// moved, with x of B bytes, where dz takes dy and x alone: those of backward.cu. A mask adds one bit per value and a
// residual B; a dz that is wanted, or a pass by stream that reads a residual again, adds B.
#include "cuda/act.cuh"
#include "cuda/backward.cuh"

namespace my_ops::cuda {
namespace {

template <class T>
Activated<T> epilogue_of(const Backward& a, const Epilogue& epilogue, const Tiling& tiling) {
  Activated<T> result = activated<T>(epilogue, tiling);
  result.gamma = a.gamma;
  result.dz = static_cast<T*>(epilogue.dz);
  return result;
}

template <class T>
BackwardMap<T, Activated<T>> map_of(const Backward& a, const Activated<T>& epilogue) {
  return {a.gamma, a.mean, a.invstd, a.count, a.count_on_device, epilogue};
}

GradientConclusion conclusion_of(const Backward& a) { return {a.sum_dy, a.sum_dy_xhat}; }

/// Where dz takes more than dy and x, or is written, it takes the place of dy on chip; else it is computed twice, which
/// saves a rounding.
cudaError_t fused_backward(const Launch& to, const Backward& a, const Epilogue& epilogue) {
  return visit(to.type, to.plan.tiling, [&](auto element, auto width) {
    using T = decltype(element);
    using W = decltype(width);
    if constexpr (kFuses<T, W>) {
      Activated<T> first = epilogue_of<T>(a, epilogue, to.plan.tiling);
      first.replaced = first.residual != nullptr || first.mask != nullptr || first.dz != nullptr;
      const Activated<T> second = first.replaced ? activated<T>({}, to.plan.tiling) : first;
      return launch_fused<T, W>(to, inputs_of<T>(a.x, a.dy), a.dx,
                                GradientReduction<T, Activated<T>>{a.mean, a.invstd, first}, conclusion_of(a),
                                map_of<T>(a, second), a.workspace, nullptr);
    } else {
      return cudaErrorInvalidValue;
    }
  });
}

template <class T, class W>
cudaError_t reduce(const Launch& to, const Backward& a, const Epilogue& epilogue) {
  Activated<T> first = epilogue_of<T>(a, epilogue, to.plan.tiling);
  first.dx = static_cast<T*>(a.dx);
  return launch_reduction<T, W>(to, inputs_of<T>(a.x, a.dy),
                                GradientReduction<T, Activated<T>>{a.mean, a.invstd, first}, conclusion_of(a),
                                a.workspace);
}

}  // namespace

cudaError_t act_backward_reduce(const Launch& to, const Backward& a, const Epilogue& epilogue) {
  return visit(to.type, to.plan.tiling,
               [&](auto element, auto width) { return reduce<decltype(element), decltype(width)>(to, a, epilogue); });
}

cudaError_t act_backward_apply(const Launch& to, const Backward& a, const Epilogue& epilogue) {
  return visit(to.type, to.plan.tiling, [&](auto element, auto width) {
    using T = decltype(element);
    return launch_map<T, decltype(width)>(to, inputs_of<T>(a.x, a.dy), a.dx,
                                          map_of<T>(a, epilogue_of<T>(a, epilogue, to.plan.tiling)),
                                          GivenSummaries{a.sum_dy, a.sum_dy_xhat});
  });
}

/// By stream the second pass starts from dz, if the first one has written it.
cudaError_t act_backward_training(const Launch& to, const Backward& a, const Epilogue& epilogue) {
  if (to.plan.family != Family::stream) return fused_backward(to, a, epilogue);
  Backward first = a;
  first.dx = nullptr;
  if (const cudaError_t error = act_backward_reduce(to, first, epilogue); error != cudaSuccess) return error;
  Summary* sums = summaries_of(a.workspace, to.plan.tiling);
  Backward second = a;
  second.sum_dy = vector_of(&sums->first);
  second.sum_dy_xhat = vector_of(&sums->second);
  if (epilogue.dz == nullptr) return act_backward_apply(to, second, epilogue);
  second.dy = epilogue.dz;
  return backward_apply(to, second);
}

}  // namespace my_ops::cuda
