// What was before batch normalization and activation over the input, computed back from the output; and the backward
// pass for devices that have none of their own: plain batch normalization's, of that.
#include <ATen/TensorOperators.h>
#include <ATen/ops/leaky_relu.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <vector>

#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/invertible.h"
#include "plan/problem.h"

namespace my_ops {
namespace {

using at::Tensor;
using ops::OptionalTensor;
using plan::Activation;

/// z from y = act(z), in a tensor of its own, rounded to y's dtype. For elu z = log1p(min(y, 0) / slope) + max(y, 0),
/// of which one is 0: torch's `where` takes as long as all of that together.
Tensor inverse_activation(const Tensor& y, at::ScalarType wide, Activation activation, double slope) {
  if (activation == Activation::leaky_relu) return at::leaky_relu(y, 1 / slope);
  const Tensor values = y.to(wide);
  Tensor z = values.clamp_max(0);
  if (slope != 1) z.div_(slope);
  return z.log1p_().add_(values.clamp_min(0)).to(y.scalar_type());
}

/// x - mean from y = act(z), z = (x - mean) * gamma * invstd + beta; of kept channels from their input.
Tensor centered_input(const Tensor& y, const Tensor& kept, const Tensor& kept_input, const OptionalTensor& gamma,
                      const OptionalTensor& beta, const Tensor& mean, const Tensor& invstd, Activation activation,
                      double slope) {
  const auto wide = mean.scalar_type();
  const Tensor shift = beta ? beta->to(wide) : at::zeros_like(mean);
  const Tensor inverse = (gamma ? gamma->to(wide) * invstd : invstd).reciprocal();
  Tensor centered;
  if (activation == Activation::identity) {
    centered = ops::batchnorm_apply(y, std::nullopt, std::nullopt, shift, inverse);
  } else {
    centered = plan::dense_like(inverse_activation(y, wide, activation, slope), y);
    ops::batchnorm_apply_out(centered, std::nullopt, std::nullopt, shift, inverse, centered);
  }
  if (kept.size(0) > 0) {
    std::vector<int64_t> sizes(y.dim(), 1);
    sizes[1] = -1;
    const Tensor means = mean.index_select(0, kept).view(sizes);
    centered.index_copy_(1, kept, (kept_input.to(wide) - means).to(y.scalar_type()));
  }
  return centered;
}

/// Plain batch normalization's backward pass of dz over x - mean, whose mean is 0.
std::tuple<Tensor, Tensor, Tensor> batchnorm_act_backward_from_output(
    const Tensor& grad_output, const Tensor& output, const Tensor& kept, const Tensor& kept_input,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd,
    bool training, std::string_view activation, double slope, ops::OutputMask output_mask) {
  const auto named = plan::activation_named("batchnorm_act_backward_from_output", activation);
  plan::check_act_backward_from_output(grad_output, output, kept, kept_input, gamma, beta, save_mean, save_invstd,
                                       named, slope);
  const Tensor x =
      centered_input(plan::dense(output), kept, kept_input, gamma, beta, save_mean, save_invstd, named, slope);
  const Tensor dz = plan::gradient_from_output(grad_output, output, named, slope);
  return ops::batchnorm_backward(dz, x, gamma, at::zeros_like(save_mean), save_invstd, training, output_mask);
}

Tensor batchnorm_act_recover(const Tensor& output, const Tensor& kept, const Tensor& kept_input,
                             const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean,
                             const Tensor& invstd, std::string_view activation, double slope) {
  const auto named = plan::activation_named("batchnorm_act_recover", activation);
  plan::check_act_recover(output, kept, kept_input, gamma, beta, mean, invstd, named, slope);
  plan::check_kept("batchnorm_act_recover", kept, output.size(1));
  return centered_input(plan::dense(output), kept, kept_input, gamma, beta, mean, invstd, named, slope);
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, CompositeExplicitAutograd, m) {
  m.impl("batchnorm_act_backward_from_output", &batchnorm_act_backward_from_output);
  m.impl("batchnorm_act_recover", &batchnorm_act_recover);
}

}  // namespace my_ops
