// Batch normalization with a residual and an activation on the GPU: the passes of batchnorm_kernel.cpp and of
// phases_kernel.cpp with an epilogue.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>

#include "cuda/forward_passes.h"
#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/problem.h"

namespace my_ops::cuda {
namespace {

using at::Tensor;
using ops::OptionalTensor;
using plan::Activation;

bool is_masked(const OptionalTensor& residual, Activation activation) {
  return residual && plan::needs_only_bit(activation);
}

/// The mask of a forward pass, as its kernels expect it: without elements if there is none. Bits are joined to words of
/// 4 bytes.
Tensor empty_mask(const Tensor& x, bool masked, const Tiling& tiling) {
  const int64_t bytes = masked ? (x.numel() + 7) / 8 : 0;
  const auto options = x.options().dtype(at::kByte);
  if (bytes == 0 || mask_by_bytes(tiling)) return at::empty({bytes}, options);
  return at::zeros({(bytes + 3) / 4 * 4}, options).narrow(0, 0, bytes);
}

Tensor dense_residual(const OptionalTensor& residual, const Tensor& x) {
  return residual ? plan::dense_like(*residual, x) : Tensor();
}

LaunchPlan plan_act_forward(const Tensor& x, const Tensor& output, const Tensor& residual, bool masked, bool training) {
  Problem problem = problem_of(x, {&output, &residual});
  problem.masked = masked;
  return plan_forward(problem, training);
}

Epilogue forward_epilogue(Activation activation, double slope, const Tensor& residual, const Tensor& mask) {
  Epilogue epilogue{activation, slope};
  if (residual.defined()) epilogue.residual = residual.const_data_ptr();
  if (mask.numel() > 0) epilogue.written = static_cast<uint8_t*>(mask.mutable_data_ptr());
  return epilogue;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_forward(
    const Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma, const OptionalTensor& beta,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
    std::optional<double> momentum, double eps, std::string_view activation, double slope,
    const OptionalTensor& num_batches_tracked) {
  const auto named = plan::activation_named("batchnorm_act_forward", activation);
  plan::check_act_forward(input, residual, gamma, beta, running_mean, running_var, training, momentum, eps,
                          num_batches_tracked);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = plan::dense(input);
  const Tensor added = dense_residual(residual, x);
  Tensor output = at::empty_like(x);
  Tensor save_mean = empty_statistic(x);
  Tensor save_invstd = empty_statistic(x);
  const bool masked = is_masked(residual, named);
  const LaunchPlan plan = plan_act_forward(x, output, added, masked, training);
  Tensor mask = empty_mask(x, masked, plan.tiling);
  const Epilogue epilogue = forward_epilogue(named, slope, added, mask);
  forward(x, {gamma, beta, running_mean, running_var, training, momentum, eps, num_batches_tracked}, plan, output,
          save_mean, save_invstd, &epilogue);
  return {output, save_mean, save_invstd, mask};
}

std::tuple<Tensor, Tensor> batchnorm_act_apply(const Tensor& input, const OptionalTensor& residual,
                                               const OptionalTensor& gamma, const OptionalTensor& beta,
                                               const Tensor& mean, const Tensor& invstd, std::string_view activation,
                                               double slope) {
  const auto named = plan::activation_named("batchnorm_act_apply", activation);
  plan::check_act_apply(input, residual, gamma, beta, mean, invstd);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = plan::dense(input);
  const Tensor added = dense_residual(residual, x);
  Tensor output = at::empty_like(x);
  const bool masked = is_masked(residual, named);
  const LaunchPlan plan = plan_act_forward(x, output, added, masked, /*training=*/false);
  Tensor mask = empty_mask(x, masked, plan.tiling);
  if (x.numel() == 0) return {output, mask};
  C10_CUDA_CHECK(act_apply(launch_of(x, plan),
                           {x.const_data_ptr(),
                            output.mutable_data_ptr(),
                            {vector(gamma), vector(beta)},
                            vector(mean),
                            vector(invstd),
                            /*spread_is_invstd=*/true},
                           forward_epilogue(named, slope, added, mask)));
  return {output, mask};
}

/// What a backward pass reads, dense. What is absent is undefined.
struct BackwardArguments {
  Tensor x;
  Tensor dy;
  Tensor residual;
  Tensor mask;
  Backward passes;
  Epilogue epilogue;

  BackwardArguments(const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual_,
                    const OptionalTensor& mask_, const OptionalTensor& gamma, const OptionalTensor& beta,
                    const Tensor& mean, const Tensor& invstd, Activation activation, double slope)
      : x(plan::dense(input)), dy(plan::dense_like(grad_output, x)), epilogue{activation, slope} {
    if (activation != Activation::identity) residual = dense_residual(residual_, x);
    if (mask_ && mask_->numel() > 0 && plan::needs_only_bit(activation)) mask = mask_->contiguous();
    if (residual.defined()) epilogue.residual = residual.const_data_ptr();
    if (mask.defined()) epilogue.mask = static_cast<const uint8_t*>(mask.const_data_ptr());
    epilogue.beta = vector(beta);
    passes.x = x.const_data_ptr();
    passes.dy = dy.const_data_ptr();
    passes.gamma = vector(gamma);
    passes.mean = vector(mean);
    passes.invstd = vector(invstd);
    passes.count = x.size(1) == 0 ? 0 : x.numel() / x.size(1);
  }

  /// Images that are written, where wanted.
  void write(const Tensor& dx, const Tensor& dz) {
    if (dx.defined()) passes.dx = dx.mutable_data_ptr();
    if (dz.defined()) epilogue.dz = dz.mutable_data_ptr();
  }

  Problem problem(const Tensor& dx, const Tensor& dz) const { return problem_of(x, {&dy, &residual, &dx, &dz}); }
};

/// dx of training depends on the sums, and takes both passes; everything else comes from the first.
void backward_passes(BackwardArguments& arguments, const Problem& problem, bool training) {
  const bool whole = training && arguments.passes.dx != nullptr;
  const LaunchPlan plan = whole ? plan_whole(problem, 2, current_device())
                                : LaunchPlan{Family::stream, plan_stream(problem, current_device()), 1};
  const Tensor scratch = workspace(arguments.x, plan);
  arguments.passes.workspace = scratch.mutable_data_ptr();
  const Launch launch = launch_of(arguments.x, plan);
  C10_CUDA_CHECK(whole ? act_backward_training(launch, arguments.passes, arguments.epilogue)
                       : act_backward_reduce(launch, arguments.passes, arguments.epilogue));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_backward(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual, const OptionalTensor& mask,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd,
    bool training, std::string_view activation, double slope, std::array<bool, 4> output_mask) {
  const auto named = plan::activation_named("batchnorm_act_backward", activation);
  plan::check_act_backward(grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd, named);
  const c10::cuda::CUDAGuard guard(input.device());
  BackwardArguments arguments(grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd, named, slope);
  const Tensor& x = arguments.x;
  const auto options = x.options().dtype(gamma ? gamma->scalar_type() : save_mean.scalar_type());
  const auto image = [&](bool is_wanted) { return is_wanted ? at::empty_like(x) : Tensor(); };
  const auto vector = [&](bool is_wanted) { return is_wanted ? at::empty({x.size(1)}, options) : Tensor(); };
  Tensor dx = image(output_mask[0]);
  Tensor dz = image(output_mask[1]);
  Tensor dgamma = vector(output_mask[2]);
  Tensor dbeta = vector(output_mask[3]);
  if (x.numel() == 0) {
    for (const Tensor& sum : {dgamma, dbeta}) {
      if (sum.defined()) sum.zero_();
    }
  } else if (std::find(output_mask.begin(), output_mask.end(), true) != output_mask.end()) {
    arguments.write(dx, dz);
    arguments.passes.sum_dy = result(dbeta);
    arguments.passes.sum_dy_xhat = result(dgamma);
    backward_passes(arguments, arguments.problem(dx, dz), training);
  }
  return {dx, dz, dgamma, dbeta};
}

std::tuple<Tensor, Tensor> batchnorm_act_backward_reduce(const Tensor& grad_output, const Tensor& input,
                                                         const OptionalTensor& residual, const OptionalTensor& mask,
                                                         const OptionalTensor& gamma, const OptionalTensor& beta,
                                                         const Tensor& mean, const Tensor& invstd,
                                                         std::string_view activation, double slope) {
  const auto named = plan::activation_named("batchnorm_act_backward_reduce", activation);
  plan::check_act_backward_reduce(grad_output, input, residual, mask, gamma, beta, mean, invstd, named);
  const c10::cuda::CUDAGuard guard(input.device());
  BackwardArguments arguments(grad_output, input, residual, mask, gamma, beta, mean, invstd, named, slope);
  Tensor sum_dy = empty_statistic(arguments.x);
  Tensor sum_dy_xhat = empty_statistic(arguments.x);
  if (arguments.x.numel() == 0) return {sum_dy.zero_(), sum_dy_xhat.zero_()};
  arguments.passes.sum_dy = result(sum_dy);
  arguments.passes.sum_dy_xhat = result(sum_dy_xhat);
  backward_passes(arguments, arguments.problem({}, {}), /*training=*/true);
  return {sum_dy, sum_dy_xhat};
}

std::tuple<Tensor, Tensor> batchnorm_act_backward_apply(const Tensor& grad_output, const Tensor& input,
                                                        const OptionalTensor& residual, const OptionalTensor& mask,
                                                        const OptionalTensor& gamma, const OptionalTensor& beta,
                                                        const Tensor& mean, const Tensor& invstd,
                                                        std::string_view activation, double slope, const Tensor& sum_dy,
                                                        const Tensor& sum_dy_xhat, const Tensor& count) {
  const auto named = plan::activation_named("batchnorm_act_backward_apply", activation);
  plan::check_act_backward_apply(grad_output, input, residual, mask, gamma, beta, mean, invstd, named, sum_dy,
                                 sum_dy_xhat, count);
  const c10::cuda::CUDAGuard guard(input.device());
  BackwardArguments arguments(grad_output, input, residual, mask, gamma, beta, mean, invstd, named, slope);
  const Tensor& x = arguments.x;
  Tensor grad_input = at::empty_like(x);
  Tensor grad_residual = at::empty_like(x);
  if (x.numel() == 0) return {grad_input, grad_residual};
  arguments.write(grad_input, grad_residual);
  arguments.passes.sum_dy = vector(sum_dy);
  arguments.passes.sum_dy_xhat = vector(sum_dy_xhat);
  arguments.passes.count_on_device = static_cast<const int64_t*>(count.const_data_ptr());
  const LaunchPlan plan{Family::stream, plan_stream(arguments.problem(grad_input, grad_residual), current_device()), 1};
  C10_CUDA_CHECK(act_backward_apply(launch_of(x, plan), arguments.passes, arguments.epilogue));
  return {grad_input, grad_residual};
}

}  // namespace
}  // namespace my_ops::cuda

TORCH_LIBRARY_IMPL(my_ops, CUDA, m) {
  m.impl("batchnorm_act_forward", &my_ops::cuda::batchnorm_act_forward);
  m.impl("batchnorm_act_backward", &my_ops::cuda::batchnorm_act_backward);
  m.impl("batchnorm_act_apply", &my_ops::cuda::batchnorm_act_apply);
  m.impl("batchnorm_act_backward_reduce", &my_ops::cuda::batchnorm_act_backward_reduce);
  m.impl("batchnorm_act_backward_apply", &my_ops::cuda::batchnorm_act_backward_apply);
}
