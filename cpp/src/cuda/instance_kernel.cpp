// Instance norm on the GPU: contiguous, batch norm of shape (1, N*C, S) under gamma and beta modulo C; channels last,
// one launch per image.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "cuda/device.h"
#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/problem.h"

namespace my_ops::cuda {
namespace {

using at::Tensor;
using ops::OptionalTensor;
using ops::OutputMask;

/// The batch norm problems that a dense tensor x is made of, and what belongs to each of them.
class Problems {
 public:
  explicit Problems(const Tensor& x) : whole_(x.is_contiguous()), count_(whole_ ? 1 : x.size(0)) {}

  size_t count() const { return count_; }

  /// A tensor like x as (1, N*C, S), or N times (1, C, ...). Undefined ones if it is.
  std::vector<Tensor> images(const Tensor& tensor) const {
    if (!tensor.defined()) return std::vector<Tensor>(count_);
    if (whole_) return {tensor.view({1, tensor.size(0) * tensor.size(1), -1})};
    return tensor.split(1);
  }

  /// The same of their results, a dense matrix [N, C].
  std::vector<Tensor> results(const Tensor& matrix) const {
    if (!matrix.defined()) return std::vector<Tensor>(count_);
    return whole_ ? std::vector<Tensor>{matrix.view({-1})} : matrix.unbind();
  }

 private:
  bool whole_;
  size_t count_;
};

Vector repeating(const OptionalTensor& tensor) {
  Vector parameter = vector(tensor);
  if (tensor) parameter.period = tensor->size(0);
  return parameter;
}

Tensor empty_matrix(const Tensor& x) {
  return at::empty({x.size(0), x.size(1)}, x.options().dtype(plan::accumulation_dtype(x.scalar_type())));
}

/// A running statistic for every image, [N, C]; undefined if there is none.
Tensor for_images(const OptionalTensor& running, const Tensor& like) {
  return running ? running->to(like.scalar_type()).expand({like.size(0), -1}).contiguous() : Tensor();
}

std::tuple<Tensor, Tensor, Tensor> instancenorm_forward(const Tensor& input, const OptionalTensor& gamma,
                                                        const OptionalTensor& beta, const OptionalTensor& running_mean,
                                                        const OptionalTensor& running_var, double momentum,
                                                        double eps) {
  plan::check_instance_forward(input, gamma, beta, running_mean, running_var, eps);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = plan::dense(input);
  const Tensor output = at::empty_like(x);
  const Tensor save_mean = empty_matrix(x);
  const Tensor save_invstd = empty_matrix(x);
  if (x.numel() == 0) {
    save_mean.zero_();
    save_invstd.fill_(1.0 / std::sqrt(eps));
    return {output, save_mean, save_invstd};
  }
  const Tensor running_means = for_images(running_mean, save_mean);
  const Tensor running_vars = for_images(running_var, save_mean);
  const Problems problems(x);
  const auto xs = problems.images(x);
  const auto ys = problems.images(output);
  const auto means = problems.results(save_mean);
  const auto invstds = problems.results(save_invstd);
  const auto moved_means = problems.results(running_means);
  const auto moved_vars = problems.results(running_vars);
  for (size_t i = 0; i < problems.count(); ++i) {
    const LaunchPlan plan = plan_whole(problem_of(xs[i], {&ys[i]}), 1, current_device());
    const Tensor scratch = workspace(x, plan);
    Running running;
    running.mean = result(moved_means[i]);
    running.var = result(moved_vars[i]);
    running.momentum = momentum;
    const Affines affine{repeating(gamma), repeating(beta)};
    C10_CUDA_CHECK(
        forward_training(launch_of(x, plan), {xs[i].const_data_ptr(), ys[i].mutable_data_ptr(), affine, running, eps,
                                              result(means[i]), result(invstds[i]), scratch.mutable_data_ptr()}));
  }
  if (running_mean) running_mean->copy_(running_means.mean(0));
  if (running_var) running_var->copy_(running_vars.mean(0));
  return {output, save_mean, save_invstd};
}

/// One problem: dx and both sums, or the sums alone.
void backward(const Tensor& x, const Tensor& dy, const Tensor& dx, Backward arguments) {
  const Problem problem = problem_of(x, {&dy, &dx});
  const LaunchPlan plan = dx.defined() ? plan_whole(problem, 2, current_device())
                                       : LaunchPlan{Family::stream, plan_stream(problem, current_device()), 1};
  const Tensor scratch = workspace(x, plan);
  arguments.dy = dy.const_data_ptr();
  arguments.x = x.const_data_ptr();
  arguments.dx = dx.defined() ? dx.mutable_data_ptr() : nullptr;
  arguments.count = x.numel() / x.size(1);
  arguments.workspace = scratch.mutable_data_ptr();
  const Launch launch = launch_of(x, plan);
  C10_CUDA_CHECK(dx.defined() ? backward_training(launch, arguments) : backward_reduce(launch, arguments));
}

std::tuple<Tensor, Tensor, Tensor> instancenorm_backward(const Tensor& grad_output, const Tensor& input,
                                                         const OptionalTensor& gamma, const Tensor& save_mean,
                                                         const Tensor& save_invstd, OutputMask output_mask) {
  plan::check_instance_backward(grad_output, input, gamma, save_mean, save_invstd);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = plan::dense(input);
  const Tensor grad_input = output_mask[0] ? at::empty_like(x) : Tensor();
  const Tensor sums_dy = empty_matrix(x);
  const Tensor sums_dy_xhat = empty_matrix(x);
  if (x.numel() == 0) {
    sums_dy.zero_();
    sums_dy_xhat.zero_();
  } else if (output_mask[0] || output_mask[1] || output_mask[2]) {
    const Problems problems(x);
    const auto xs = problems.images(x);
    const auto dys = problems.images(plan::dense_like(grad_output, x));
    const auto dxs = problems.images(grad_input);
    const auto means = problems.results(save_mean.contiguous());
    const auto invstds = problems.results(save_invstd.contiguous());
    const auto sums = problems.results(sums_dy);
    const auto sums_xhat = problems.results(sums_dy_xhat);
    for (size_t i = 0; i < problems.count(); ++i) {
      Backward arguments;
      arguments.gamma = repeating(gamma);
      arguments.mean = vector(means[i]);
      arguments.invstd = vector(invstds[i]);
      arguments.sum_dy = result(sums[i]);
      arguments.sum_dy_xhat = result(sums_xhat[i]);
      backward(xs[i], dys[i], dxs[i], arguments);
    }
  }
  const auto dtype = gamma ? gamma->scalar_type() : save_mean.scalar_type();
  const auto over_images = [&](bool wanted, const Tensor& sums) { return wanted ? sums.sum(0).to(dtype) : Tensor(); };
  return {grad_input, over_images(output_mask[1], sums_dy_xhat), over_images(output_mask[2], sums_dy)};
}

}  // namespace
}  // namespace my_ops::cuda

TORCH_LIBRARY_IMPL(my_ops, CUDA, m) {
  m.impl("instancenorm_forward", &my_ops::cuda::instancenorm_forward);
  m.impl("instancenorm_backward", &my_ops::cuda::instancenorm_backward);
}
