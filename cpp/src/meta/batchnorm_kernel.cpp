// Shapes, dtypes and layouts without data. Sizes may be symbolic.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "meta/results.h"
#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/outputs.h"
#include "plan/problem.h"

namespace my_ops {
namespace {

using at::Tensor;
using ops::OptionalTensor;
using ops::OutputMask;

using meta::image_like;
using meta::per_channel;
using meta::statistic;

Tensor count(const Tensor& input) { return at::empty({1}, input.options().dtype(at::kLong)); }

std::tuple<Tensor, Tensor, Tensor> batchnorm_forward(const Tensor& input, const OptionalTensor& gamma,
                                                     const OptionalTensor& beta, const OptionalTensor& running_mean,
                                                     const OptionalTensor& running_var, bool training,
                                                     std::optional<double> momentum, double eps,
                                                     const OptionalTensor& num_batches_tracked) {
  plan::check_forward(input, gamma, beta, running_mean, running_var, training, momentum, eps, num_batches_tracked);
  return {image_like(input), statistic(input), statistic(input)};
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_backward(const Tensor& grad_output, const Tensor& input,
                                                      const OptionalTensor& gamma, const Tensor& save_mean,
                                                      const Tensor& save_invstd, bool training,
                                                      OutputMask output_mask) {
  plan::check_backward(grad_output, input, gamma, save_mean, save_invstd);
  const auto dtype = gamma ? gamma->scalar_type() : save_mean.scalar_type();
  return {output_mask[0] ? image_like(input) : Tensor(), output_mask[1] ? per_channel(input, dtype) : Tensor(),
          output_mask[2] ? per_channel(input, dtype) : Tensor()};
}

std::tuple<Tensor&, Tensor&, Tensor&> batchnorm_forward_out(
    const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
    const OptionalTensor& num_batches_tracked, Tensor& output, Tensor& save_mean, Tensor& save_invstd) {
  plan::check_forward(input, gamma, beta, running_mean, running_var, training, momentum, eps, num_batches_tracked);
  plan::check_forward_out(input, gamma, beta, running_mean, running_var, num_batches_tracked, output, save_mean,
                          save_invstd);
  plan::resize_image(output, plan::dense(input));
  plan::resize_channels(save_mean, input);
  plan::resize_channels(save_invstd, input);
  return {output, save_mean, save_invstd};
}

std::tuple<Tensor&, Tensor&, Tensor&> batchnorm_backward_out(const Tensor& grad_output, const Tensor& input,
                                                             const OptionalTensor& gamma, const Tensor& save_mean,
                                                             const Tensor& save_invstd, bool training,
                                                             OutputMask output_mask, Tensor& grad_input,
                                                             Tensor& grad_gamma, Tensor& grad_beta) {
  plan::check_backward(grad_output, input, gamma, save_mean, save_invstd);
  plan::check_backward_out(grad_output, input, gamma, save_mean, save_invstd, output_mask, grad_input, grad_gamma,
                           grad_beta);
  if (output_mask[0]) plan::resize_image(grad_input, plan::dense(input));
  if (output_mask[1]) plan::resize_channels(grad_gamma, input);
  if (output_mask[2]) plan::resize_channels(grad_beta, input);
  return {grad_input, grad_gamma, grad_beta};
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_stats(const Tensor& input) {
  plan::check_stats(input);
  return {statistic(input), statistic(input), count(input)};
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_gather_stats(const Tensor& mean, const Tensor& m2, const Tensor& count_,
                                                          const OptionalTensor& running_mean,
                                                          const OptionalTensor& running_var,
                                                          std::optional<double> momentum, double eps,
                                                          const OptionalTensor& num_batches_tracked) {
  plan::check_gather_stats(mean, m2, count_, running_mean, running_var, momentum, eps, num_batches_tracked);
  return {statistic(mean), statistic(mean), count(mean)};
}

Tensor batchnorm_apply(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean,
                       const Tensor& invstd) {
  plan::check_apply(input, gamma, beta, mean, invstd);
  return image_like(input);
}

Tensor& batchnorm_apply_out(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                            const Tensor& mean, const Tensor& invstd, Tensor& out) {
  plan::check_apply(input, gamma, beta, mean, invstd);
  plan::check_apply_out(input, gamma, beta, mean, invstd, out);
  plan::resize_image(out, plan::dense(input));
  return out;
}

std::tuple<Tensor, Tensor> batchnorm_backward_reduce(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                                     const Tensor& invstd) {
  plan::check_backward_reduce(grad_output, input, mean, invstd);
  return {statistic(input), statistic(input)};
}

Tensor batchnorm_backward_apply(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                                const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                                const Tensor& sum_dy_xhat, const Tensor& count_) {
  plan::check_backward_apply(grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat, count_);
  return image_like(input);
}

Tensor& batchnorm_backward_apply_out(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                                     const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                                     const Tensor& sum_dy_xhat, const Tensor& count_, Tensor& out) {
  plan::check_backward_apply(grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat, count_);
  plan::check_backward_apply_out(grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat, count_, out);
  plan::resize_image(out, plan::dense(input));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, Meta, m) {
  m.impl("batchnorm_forward", &batchnorm_forward);
  m.impl("batchnorm_backward", &batchnorm_backward);
  m.impl("batchnorm_forward.out", &batchnorm_forward_out);
  m.impl("batchnorm_backward.out", &batchnorm_backward_out);
  m.impl("batchnorm_stats", &batchnorm_stats);
  m.impl("batchnorm_gather_stats", &batchnorm_gather_stats);
  m.impl("batchnorm_apply", &batchnorm_apply);
  m.impl("batchnorm_backward_reduce", &batchnorm_backward_reduce);
  m.impl("batchnorm_backward_apply", &batchnorm_backward_apply);
  m.impl("batchnorm_apply.out", &batchnorm_apply_out);
  m.impl("batchnorm_backward_apply.out", &batchnorm_backward_apply_out);
}

}  // namespace my_ops
