// Batch normalization and activation over the input, on the CPU; the backward pass starts from the output.
#include <ATen/TensorOperators.h>
#include <ATen/ops/log1p.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <vector>

#include "cpu/act_map.h"
#include "cpu/forward_passes.h"
#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/invertible.h"

namespace my_ops::cpu {
namespace {

using at::Tensor;
using ops::OptionalTensor;
using plan::Activation;

/// Statistics, then what must be kept of x, then the output over x. Last the running statistics move, when nothing can
/// fail any more.
std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_forward_(
    Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
    std::string_view activation, double slope, const OptionalTensor& num_batches_tracked) {
  const auto named = plan::activation_named("batchnorm_act_forward_", activation);
  plan::check_act_forward_in_place(input, gamma, beta, running_mean, running_var, training, momentum, eps, named, slope,
                                   num_batches_tracked);
  const Tensor x = plan::dense(input);
  Tensor save_mean = empty_statistic(x);
  Tensor save_invstd = empty_statistic(x);
  Tensor kept;
  Tensor kept_input;
  visit_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    ForwardScratch<A> scratch(x.size(1), gamma, beta, save_mean, save_invstd, eps);
    auto running = forward_statistics<T>(
        x, scratch, {running_mean, running_var, training, momentum, num_batches_tracked, /*staged=*/true});
    kept = plan::channels_to_keep(x, gamma, beta, save_mean, save_invstd, named, slope);
    kept_input = x.index_select(1, kept);
    map_everywhere<T>(x, act_map<T>(x, x, scratch.coefficients(), Epilogue<T>{named, static_cast<A>(slope)}));
    if (!x.is_same(input)) input.copy_(x);
    running.finish();
  });
  return {save_mean, save_invstd, kept, kept_input};
}

/// x - mean from y = act(z), z = (x - mean) * gamma * invstd + beta: the inverse of act, which may round to y's dtype,
/// then that of the affine map; of kept channels from their input.
Tensor centered_input(const Tensor& y, const Tensor& kept, const Tensor& kept_input, const OptionalTensor& gamma,
                      const OptionalTensor& beta, const Tensor& mean, const Tensor& invstd, Activation activation,
                      double slope) {
  Tensor z = y;
  if (activation == Activation::elu) {
    const Tensor wide = y.to(mean.scalar_type());
    z = plan::dense_like(at::where(wide > 0, wide, at::log1p(wide / slope)).to(y.scalar_type()), y);
  }
  Tensor centered = empty_image(y);
  visit_element(y.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    const int64_t channels = y.size(1);
    const Tensor zeros = at::zeros({3, channels}, mean.options());
    if (activation == Activation::leaky_relu) {
      const Tensor ones = at::ones({channels}, mean.options());
      const A* zero = read<A>(zeros);
      const Epilogue<T> inverse{activation, static_cast<A>(1 / slope)};
      map_everywhere<T>(y, act_map<T>(y, centered, {zero, read<A>(ones), zero}, inverse));
      z = centered;
    }
    ZCoefficients<A> affine(channels, gamma, beta, invstd);
    const auto k = affine.get();
    Scratch<A> inverse(channels);
    for (int64_t c = 0; c < channels; ++c) inverse[c] = A(1) / k.scale[c];
    const Epilogue<T> plain{Activation::identity, A(0)};
    map_everywhere<T>(z, act_map<T>(z, centered, {k.shift, inverse, read<A>(zeros)}, plain));
  });
  if (kept.size(0) > 0) {
    std::vector<int64_t> sizes(y.dim(), 1);
    sizes[1] = -1;
    const Tensor means = mean.index_select(0, kept).view(sizes);
    centered.index_copy_(1, kept, (kept_input.to(mean.scalar_type()) - means).to(y.scalar_type()));
  }
  return centered;
}

void check_kept(const char* op, const Tensor& kept, int64_t channels) {
  const Tensor dense = kept.contiguous();
  for (int64_t i = 0; i < dense.size(0); ++i) {
    const int64_t channel = read<int64_t>(dense)[i];
    TORCH_CHECK(channel >= 0 && channel < channels, op, ": expected kept of channels from 0 to ", channels - 1,
                ", got ", channel);
  }
}

/// Plain batch normalization's backward pass of dz over x - mean, whose mean is 0.
std::tuple<Tensor, Tensor, Tensor> batchnorm_act_backward_from_output(
    const Tensor& grad_output, const Tensor& output, const Tensor& kept, const Tensor& kept_input,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd,
    bool training, std::string_view activation, double slope, ops::OutputMask output_mask) {
  const auto named = plan::activation_named("batchnorm_act_backward_from_output", activation);
  plan::check_act_backward_from_output(grad_output, output, kept, kept_input, gamma, beta, save_mean, save_invstd,
                                       named, slope);
  check_kept("batchnorm_act_backward_from_output", kept, output.size(1));
  const Tensor x =
      centered_input(plan::dense(output), kept, kept_input, gamma, beta, save_mean, save_invstd, named, slope);
  const Tensor dz = plan::gradient_from_output(grad_output, output, named, slope);
  return ops::batchnorm_backward(dz, x, gamma, at::zeros_like(save_mean), save_invstd, training, output_mask);
}

std::tuple<Tensor, Tensor> batchnorm_act_apply_(Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                                                const Tensor& mean, const Tensor& invstd, std::string_view activation,
                                                double slope) {
  const auto named = plan::activation_named("batchnorm_act_apply_", activation);
  plan::check_act_apply_in_place(input, gamma, beta, mean, invstd, named, slope);
  const Tensor x = plan::dense(input);
  const Tensor kept = plan::channels_to_keep(x, gamma, beta, mean, invstd, named, slope);
  const Tensor kept_input = x.index_select(1, kept);
  visit_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    ZCoefficients<A> z(x.size(1), gamma, beta, invstd);
    const ChannelVector<A> means(mean);
    const ForwardCoefficients<A> coefficients{means.data(), z.get().scale, z.get().shift};
    map_everywhere<T>(x, act_map<T>(x, x, coefficients, Epilogue<T>{named, static_cast<A>(slope)}));
  });
  if (!x.is_same(input)) input.copy_(x);
  return {kept, kept_input};
}

Tensor batchnorm_act_recover(const Tensor& output, const Tensor& kept, const Tensor& kept_input,
                             const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean,
                             const Tensor& invstd, std::string_view activation, double slope) {
  const auto named = plan::activation_named("batchnorm_act_recover", activation);
  plan::check_act_recover(output, kept, kept_input, gamma, beta, mean, invstd, named, slope);
  check_kept("batchnorm_act_recover", kept, output.size(1));
  return centered_input(plan::dense(output), kept, kept_input, gamma, beta, mean, invstd, named, slope);
}

}  // namespace
}  // namespace my_ops::cpu

TORCH_LIBRARY_IMPL(my_ops, CPU, m) {
  m.impl("batchnorm_act_forward_", &my_ops::cpu::batchnorm_act_forward_);
  m.impl("batchnorm_act_backward_from_output", &my_ops::cpu::batchnorm_act_backward_from_output);
  m.impl("batchnorm_act_apply_", &my_ops::cpu::batchnorm_act_apply_);
  m.impl("batchnorm_act_recover", &my_ops::cpu::batchnorm_act_recover);
}
