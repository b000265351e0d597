// Whole batch normalization on the GPU. Nothing waits for the device, so calls can be captured in a CUDA graph.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <cmath>

#include "cuda/device.h"
#include "ops.h"
#include "plan/checks.h"
#include "plan/problem.h"

namespace my_ops::cuda {
namespace {

using at::Tensor;
using ops::OptionalTensor;
using ops::OutputMask;

/// What was normalised with, where there is nothing to normalise.
void save_without_values(const Tensor& mean, const Tensor& invstd, const OptionalTensor& running_mean,
                         const OptionalTensor& running_var, bool training, double eps) {
  if (training) {
    mean.zero_();
    invstd.fill_(1.0 / std::sqrt(eps));
  } else {
    mean.copy_(*running_mean);
    invstd.copy_(running_var->to(at::kDouble).add(eps).rsqrt_());
  }
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_forward(const Tensor& input, const OptionalTensor& gamma,
                                                     const OptionalTensor& beta, const OptionalTensor& running_mean,
                                                     const OptionalTensor& running_var, bool training,
                                                     std::optional<double> momentum, double eps,
                                                     const OptionalTensor& num_batches_tracked) {
  plan::check_forward(input, gamma, beta, running_mean, running_var, training, momentum, eps, num_batches_tracked);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = plan::dense(input);
  Tensor output = at::empty_like(x);
  Tensor save_mean = empty_statistic(x);
  Tensor save_invstd = empty_statistic(x);
  if (x.numel() == 0) {
    save_without_values(save_mean, save_invstd, running_mean, running_var, training, eps);
    return {output, save_mean, save_invstd};
  }
  const Problem problem = problem_of(x, {&output});
  const Affines affine{vector(gamma), vector(beta)};
  if (training) {
    const LaunchPlan plan = plan_whole(problem, 1, current_device());
    const Tensor scratch = workspace(x, plan);
    C10_CUDA_CHECK(
        forward_training(launch_of(x, plan), {x.const_data_ptr(), output.mutable_data_ptr(), affine,
                                              running_of(running_mean, running_var, momentum, num_batches_tracked), eps,
                                              result(save_mean), result(save_invstd), scratch.mutable_data_ptr()}));
  } else {
    const LaunchPlan plan{Family::stream, plan_stream(problem, current_device()), 1};
    C10_CUDA_CHECK(apply(launch_of(x, plan), {x.const_data_ptr(), output.mutable_data_ptr(), affine,
                                              vector(running_mean), vector(running_var), /*spread_is_invstd=*/false,
                                              eps, result(save_mean), result(save_invstd)}));
  }
  return {output, save_mean, save_invstd};
}

/// Training needs both sums for dx. In eval dx depends on dy alone, and is written while the sums are taken.
void backward(const Tensor& x, Backward arguments, const Problem& problem, bool training) {
  const Device& device = current_device();
  const bool sums = arguments.sum_dy.data != nullptr || arguments.sum_dy_xhat.data != nullptr;
  if (training && arguments.dx != nullptr) {
    const LaunchPlan plan = plan_whole(problem, 2, device);
    const Tensor scratch = workspace(x, plan);
    arguments.workspace = scratch.mutable_data_ptr();
    C10_CUDA_CHECK(backward_training(launch_of(x, plan), arguments));
    return;
  }
  const LaunchPlan plan{Family::stream, plan_stream(problem, device), 1};
  const Tensor scratch = sums ? workspace(x, plan) : Tensor();
  if (sums) arguments.workspace = scratch.mutable_data_ptr();
  if (arguments.dx != nullptr) {
    C10_CUDA_CHECK(backward_eval(launch_of(x, plan), arguments));
  } else if (sums) {
    C10_CUDA_CHECK(backward_reduce(launch_of(x, plan), arguments));
  }
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_backward(const Tensor& grad_output, const Tensor& input,
                                                      const OptionalTensor& gamma, const Tensor& save_mean,
                                                      const Tensor& save_invstd, bool training,
                                                      OutputMask output_mask) {
  plan::check_backward(grad_output, input, gamma, save_mean, save_invstd);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = plan::dense(input);
  const auto options = x.options().dtype(gamma ? gamma->scalar_type() : save_mean.scalar_type());
  const auto gradient = [&](bool wanted) {
    if (!wanted) return Tensor();
    return x.numel() == 0 ? at::zeros({x.size(1)}, options) : at::empty({x.size(1)}, options);
  };
  Tensor grad_input = output_mask[0] ? at::empty_like(x) : Tensor();
  Tensor grad_gamma = gradient(output_mask[1]);
  Tensor grad_beta = gradient(output_mask[2]);
  if (x.numel() > 0) {
    const Tensor dy = plan::dense_like(grad_output, x);
    const Problem problem = problem_of(x, {&dy, &grad_input});
    Backward arguments{dy.const_data_ptr(), x.const_data_ptr(),
                       grad_input.defined() ? grad_input.mutable_data_ptr() : nullptr};
    arguments.gamma = vector(gamma);
    arguments.mean = vector(save_mean);
    arguments.invstd = vector(save_invstd);
    arguments.sum_dy = result(grad_beta);
    arguments.sum_dy_xhat = result(grad_gamma);
    arguments.count = x.numel() / x.size(1);
    backward(x, arguments, problem, training);
  }
  return {grad_input, grad_gamma, grad_beta};
}

}  // namespace
}  // namespace my_ops::cuda

TORCH_LIBRARY_IMPL(my_ops, CUDA, m) {
  m.impl("batchnorm_forward", &my_ops::cuda::batchnorm_forward);
  m.impl("batchnorm_backward", &my_ops::cuda::batchnorm_backward);
}
