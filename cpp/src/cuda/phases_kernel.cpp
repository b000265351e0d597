// The phase operators on the GPU: the passes of batchnorm_kernel.cpp one by one. Counts stay on the device; what they
// hold is not checked, since that would wait for it: a count of 0 gives NaN where the CPU raises an error.
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/sum.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "cuda/device.h"
#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/outputs.h"
#include "plan/problem.h"

namespace my_ops::cuda {
namespace {

using at::Tensor;
using ops::OptionalTensor;

LaunchPlan stream_plan(const Tensor& x, std::initializer_list<const Tensor*> tensors) {
  return {Family::stream, plan_stream(problem_of(x, tensors), current_device()), 1};
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_stats(const Tensor& input) {
  plan::check_stats(input);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = plan::dense(input);
  Tensor mean = empty_statistic(x);
  Tensor m2 = empty_statistic(x);
  const int64_t values = x.size(1) == 0 ? 0 : x.numel() / x.size(1);
  Tensor count = at::full({1}, values, x.options().dtype(at::kLong));
  if (x.numel() == 0) return {mean.zero_(), m2.zero_(), count};
  const LaunchPlan plan = stream_plan(x, {});
  const Tensor scratch = workspace(x, plan);
  C10_CUDA_CHECK(stats(launch_of(x, plan), {x.const_data_ptr(), result(mean), result(m2), scratch.mutable_data_ptr()}));
  return {mean, m2, count};
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_gather_stats(const Tensor& mean, const Tensor& m2, const Tensor& count,
                                                          const OptionalTensor& running_mean,
                                                          const OptionalTensor& running_var,
                                                          std::optional<double> momentum, double eps,
                                                          const OptionalTensor& num_batches_tracked) {
  plan::check_gather_stats(mean, m2, count, running_mean, running_var, momentum, eps, num_batches_tracked);
  const c10::cuda::CUDAGuard guard(mean.device());
  const Tensor means = mean.contiguous();
  const Tensor m2s = m2.contiguous();
  const Tensor counts = count.contiguous();
  Tensor out_mean = empty_statistic(mean);
  Tensor out_invstd = empty_statistic(mean);
  Tensor total = at::sum(counts).view({1});
  GatherStats arguments{means.const_data_ptr(), m2s.const_data_ptr(),
                        static_cast<const int64_t*>(counts.const_data_ptr())};
  arguments.parts = means.size(0);
  arguments.channels = means.size(1);
  arguments.running = running_of(running_mean, running_var, momentum, num_batches_tracked);
  arguments.eps = eps;
  arguments.out_mean = result(out_mean);
  arguments.out_invstd = result(out_invstd);
  arguments.total = static_cast<const int64_t*>(total.const_data_ptr());
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream().stream();
  C10_CUDA_CHECK(gather_stats(element_type(mean.scalar_type()), arguments, stream));
  return {out_mean, out_invstd, total};
}

/// One pass over a dense x; output laid out as x.
void apply_to(const Tensor& output, const Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta,
              const Tensor& mean, const Tensor& invstd) {
  if (x.numel() == 0) return;
  C10_CUDA_CHECK(apply(launch_of(x, stream_plan(x, {&output})), {x.const_data_ptr(),
                                                                 output.mutable_data_ptr(),
                                                                 {vector(gamma), vector(beta)},
                                                                 vector(mean),
                                                                 vector(invstd),
                                                                 /*spread_is_invstd=*/true}));
}

Tensor batchnorm_apply(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean,
                       const Tensor& invstd) {
  plan::check_apply(input, gamma, beta, mean, invstd);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = plan::dense(input);
  Tensor output = at::empty_like(x);
  apply_to(output, x, gamma, beta, mean, invstd);
  return output;
}

Tensor& batchnorm_apply_out(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                            const Tensor& mean, const Tensor& invstd, Tensor& out) {
  plan::check_apply(input, gamma, beta, mean, invstd);
  plan::check_apply_out(input, gamma, beta, mean, invstd, out);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = plan::dense(input);
  plan::resize_image(out, x);
  const Tensor output = plan::image_to_fill(out, x);
  apply_to(output, x, gamma, beta, mean, invstd);
  plan::deliver(output, out);
  return out;
}

std::tuple<Tensor, Tensor> batchnorm_backward_reduce(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                                     const Tensor& invstd) {
  plan::check_backward_reduce(grad_output, input, mean, invstd);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = plan::dense(input);
  Tensor sum_dy = empty_statistic(x);
  Tensor sum_dy_xhat = empty_statistic(x);
  if (x.numel() == 0) return {sum_dy.zero_(), sum_dy_xhat.zero_()};
  const Tensor dy = plan::dense_like(grad_output, x);
  const LaunchPlan plan = stream_plan(x, {&dy});
  const Tensor scratch = workspace(x, plan);
  Backward arguments{dy.const_data_ptr(), x.const_data_ptr(), nullptr};
  arguments.mean = vector(mean);
  arguments.invstd = vector(invstd);
  arguments.sum_dy = result(sum_dy);
  arguments.sum_dy_xhat = result(sum_dy_xhat);
  arguments.workspace = scratch.mutable_data_ptr();
  C10_CUDA_CHECK(backward_reduce(launch_of(x, plan), arguments));
  return {sum_dy, sum_dy_xhat};
}

/// One pass over grad_output and a dense x; grad_input laid out as x.
void backward_apply_to(const Tensor& grad_input, const Tensor& grad_output, const Tensor& x,
                       const OptionalTensor& gamma, const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                       const Tensor& sum_dy_xhat, const Tensor& count) {
  if (x.numel() == 0) return;
  const Tensor dy = plan::dense_like(grad_output, x);
  Backward arguments{dy.const_data_ptr(), x.const_data_ptr(), grad_input.mutable_data_ptr()};
  arguments.gamma = vector(gamma);
  arguments.mean = vector(mean);
  arguments.invstd = vector(invstd);
  arguments.sum_dy = vector(sum_dy);
  arguments.sum_dy_xhat = vector(sum_dy_xhat);
  arguments.count_on_device = static_cast<const int64_t*>(count.const_data_ptr());
  C10_CUDA_CHECK(backward_apply(launch_of(x, stream_plan(x, {&dy, &grad_input})), arguments));
}

Tensor batchnorm_backward_apply(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                                const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                                const Tensor& sum_dy_xhat, const Tensor& count) {
  plan::check_backward_apply(grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat, count);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = plan::dense(input);
  Tensor grad_input = at::empty_like(x);
  backward_apply_to(grad_input, grad_output, x, gamma, mean, invstd, sum_dy, sum_dy_xhat, count);
  return grad_input;
}

Tensor& batchnorm_backward_apply_out(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                                     const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                                     const Tensor& sum_dy_xhat, const Tensor& count, Tensor& out) {
  plan::check_backward_apply(grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat, count);
  plan::check_backward_apply_out(grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat, count, out);
  const c10::cuda::CUDAGuard guard(input.device());
  const Tensor x = plan::dense(input);
  plan::resize_image(out, x);
  const Tensor grad_input = plan::image_to_fill(out, x);
  backward_apply_to(grad_input, grad_output, x, gamma, mean, invstd, sum_dy, sum_dy_xhat, count);
  plan::deliver(grad_input, out);
  return out;
}

}  // namespace
}  // namespace my_ops::cuda

TORCH_LIBRARY_IMPL(my_ops, CUDA, m) {
  m.impl("batchnorm_stats", &my_ops::cuda::batchnorm_stats);
  m.impl("batchnorm_gather_stats", &my_ops::cuda::batchnorm_gather_stats);
  m.impl("batchnorm_apply", &my_ops::cuda::batchnorm_apply);
  m.impl("batchnorm_backward_reduce", &my_ops::cuda::batchnorm_backward_reduce);
  m.impl("batchnorm_backward_apply", &my_ops::cuda::batchnorm_backward_apply);
  m.impl("batchnorm_apply.out", &my_ops::cuda::batchnorm_apply_out);
  m.impl("batchnorm_backward_apply.out", &my_ops::cuda::batchnorm_backward_apply_out);
}
