// Batch normalization and activation over the input, on the GPU. Which channels must be kept depends on their values,
// and sizes a result: that waits for the device, so these calls cannot be captured in a CUDA graph.
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "cuda/forward_passes.h"
#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/invertible.h"
#include "plan/problem.h"

namespace my_ops::cuda {
namespace {

using at::Tensor;
using ops::OptionalTensor;

/// Statistics, then what must be kept of x, then the output over x.
std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_forward_(
    Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
    std::string_view activation, double slope, const OptionalTensor& num_batches_tracked) {
  const auto named = plan::activation_named("batchnorm_act_forward_", activation);
  plan::check_act_forward_in_place(input, gamma, beta, running_mean, running_var, training, momentum, eps, named, slope,
                                   num_batches_tracked);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = plan::dense(input);
  Tensor save_mean = empty_statistic(x);
  Tensor save_invstd = empty_statistic(x);
  const NormArguments arguments{gamma, beta, running_mean, running_var, training, momentum, eps, num_batches_tracked};
  if (!training || x.numel() == 0) save_given(save_mean, save_invstd, arguments);

  Apply second{x.const_data_ptr(), x.mutable_data_ptr(), arguments.affine()};
  const LaunchPlan plan = plan_forward(problem_of(x, {}), /*training=*/false);
  Tensor scratch;
  if (training && x.numel() > 0) {
    const Running running = arguments.running();
    scratch = workspace(x, plan);
    C10_CUDA_CHECK(
        forward_statistics(launch_of(x, plan), {x.const_data_ptr(), nullptr, second.affine, running, eps,
                                                result(save_mean), result(save_invstd), scratch.mutable_data_ptr()}));
    const Statistics batch = statistics_in(scratch.mutable_data_ptr(), plan);
    second.mean = batch.mean;
    second.spread = batch.invstd;
    second.spread_is_invstd = true;
    second.counter = running.counter;
  } else {
    second.mean = vector(running_mean);
    second.spread = vector(running_var);
    second.eps = eps;
  }
  Tensor kept = plan::channels_to_keep(x, gamma, beta, save_mean, save_invstd, named, slope);
  Tensor kept_input = plan::input_to_keep(x, kept);
  if (x.numel() > 0) C10_CUDA_CHECK(act_apply(launch_of(x, plan), second, Epilogue{named, slope}));
  if (!x.is_same(input)) input.copy_(x);
  return {save_mean, save_invstd, kept, kept_input};
}

/// The same from given statistics.
std::tuple<Tensor, Tensor> batchnorm_act_apply_(Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                                                const Tensor& mean, const Tensor& invstd, std::string_view activation,
                                                double slope) {
  const auto named = plan::activation_named("batchnorm_act_apply_", activation);
  plan::check_act_apply_in_place(input, gamma, beta, mean, invstd, named, slope);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = plan::dense(input);
  const Tensor kept = plan::channels_to_keep(x, gamma, beta, mean, invstd, named, slope);
  const Tensor kept_input = plan::input_to_keep(x, kept);
  if (x.numel() > 0) {
    const LaunchPlan plan = plan_forward(problem_of(x, {}), /*training=*/false);
    const Apply pass{x.const_data_ptr(),       x.mutable_data_ptr(), {vector(gamma), vector(beta)}, vector(mean),
                     vector(invstd),
                     /*spread_is_invstd=*/true};
    C10_CUDA_CHECK(act_apply(launch_of(x, plan), pass, Epilogue{named, slope}));
  }
  if (!x.is_same(input)) input.copy_(x);
  return {kept, kept_input};
}

}  // namespace
}  // namespace my_ops::cuda

TORCH_LIBRARY_IMPL(my_ops, CUDA, m) {
  m.impl("batchnorm_act_forward_", &my_ops::cuda::batchnorm_act_forward_);
  m.impl("batchnorm_act_apply_", &my_ops::cuda::batchnorm_act_apply_);
}
