// Whole batch normalization on the GPU. Nothing waits for the device, so calls can be captured in a CUDA graph.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "cuda/forward_passes.h"
#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/outputs.h"
#include "plan/problem.h"

namespace my_ops::cuda {
namespace {

using at::Tensor;
using ops::OptionalTensor;
using ops::OutputMask;

/// output may be x.
void forward_into(const Tensor& x, const NormArguments& arguments, const Tensor& output, const Tensor& save_mean,
                  const Tensor& save_invstd) {
  forward(x, arguments, plan_forward(problem_of(x, {&output}), arguments.training), output, save_mean, save_invstd);
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
  forward_into(x, {gamma, beta, running_mean, running_var, training, momentum, eps, num_batches_tracked}, output,
               save_mean, save_invstd);
  return {output, save_mean, save_invstd};
}

std::tuple<Tensor&, Tensor&, Tensor&> batchnorm_forward_out(
    const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
    const OptionalTensor& num_batches_tracked, Tensor& output, Tensor& save_mean, Tensor& save_invstd) {
  plan::check_forward(input, gamma, beta, running_mean, running_var, training, momentum, eps, num_batches_tracked);
  plan::check_forward_out(input, gamma, beta, running_mean, running_var, num_batches_tracked, output, save_mean,
                          save_invstd);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = plan::dense(input);
  plan::resize_image(output, x);
  plan::resize_channels(save_mean, x);
  plan::resize_channels(save_invstd, x);
  const Tensor y = plan::image_to_fill(output, x);
  forward_into(x, {gamma, beta, running_mean, running_var, training, momentum, eps, num_batches_tracked}, y, save_mean,
               save_invstd);
  plan::deliver(y, output);
  return {output, save_mean, save_invstd};
}

/// Training needs both sums for dx. In eval dx depends on dy alone, and is written while the sums are taken.
void backward_passes(const Tensor& x, Backward arguments, const Problem& problem, bool training) {
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

/// All of a backward pass over a dense x; grad_input laid out as x. Undefined gradients are not wanted.
void backward(const Tensor& grad_output, const Tensor& x, const OptionalTensor& gamma, const Tensor& save_mean,
              const Tensor& save_invstd, bool training, const Tensor& grad_input, const Tensor& grad_gamma,
              const Tensor& grad_beta) {
  if (x.numel() == 0) {
    if (grad_gamma.defined()) grad_gamma.zero_();
    if (grad_beta.defined()) grad_beta.zero_();
    return;
  }
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
  backward_passes(x, arguments, problem, training);
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_backward(const Tensor& grad_output, const Tensor& input,
                                                      const OptionalTensor& gamma, const Tensor& save_mean,
                                                      const Tensor& save_invstd, bool training,
                                                      OutputMask output_mask) {
  plan::check_backward(grad_output, input, gamma, save_mean, save_invstd);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = plan::dense(input);
  const auto options = x.options().dtype(gamma ? gamma->scalar_type() : save_mean.scalar_type());
  Tensor grad_input = output_mask[0] ? at::empty_like(x) : Tensor();
  Tensor grad_gamma = output_mask[1] ? at::empty({x.size(1)}, options) : Tensor();
  Tensor grad_beta = output_mask[2] ? at::empty({x.size(1)}, options) : Tensor();
  backward(grad_output, x, gamma, save_mean, save_invstd, training, grad_input, grad_gamma, grad_beta);
  return {grad_input, grad_gamma, grad_beta};
}

std::tuple<Tensor&, Tensor&, Tensor&> batchnorm_backward_out(const Tensor& grad_output, const Tensor& input,
                                                             const OptionalTensor& gamma, const Tensor& save_mean,
                                                             const Tensor& save_invstd, bool training,
                                                             OutputMask output_mask, Tensor& grad_input,
                                                             Tensor& grad_gamma, Tensor& grad_beta) {
  plan::check_backward(grad_output, input, gamma, save_mean, save_invstd);
  plan::check_backward_out(grad_output, input, gamma, save_mean, save_invstd, output_mask, grad_input, grad_gamma,
                           grad_beta);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = plan::dense(input);
  if (output_mask[0]) plan::resize_image(grad_input, x);
  if (output_mask[1]) plan::resize_channels(grad_gamma, x);
  if (output_mask[2]) plan::resize_channels(grad_beta, x);
  const Tensor dx = output_mask[0] ? plan::image_to_fill(grad_input, x) : Tensor();
  backward(grad_output, x, gamma, save_mean, save_invstd, training, dx, output_mask[1] ? grad_gamma : Tensor(),
           output_mask[2] ? grad_beta : Tensor());
  if (output_mask[0]) plan::deliver(dx, grad_input);
  return {grad_input, grad_gamma, grad_beta};
}

}  // namespace
}  // namespace my_ops::cuda

TORCH_LIBRARY_IMPL(my_ops, CUDA, m) {
  m.impl("batchnorm_forward", &my_ops::cuda::batchnorm_forward);
  m.impl("batchnorm_backward", &my_ops::cuda::batchnorm_backward);
  m.impl("batchnorm_forward.out", &my_ops::cuda::batchnorm_forward_out);
  m.impl("batchnorm_backward.out", &my_ops::cuda::batchnorm_backward_out);
}
