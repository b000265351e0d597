// Shapes, dtypes and layouts of the operators with an activation. Sizes may be symbolic.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "meta/results.h"
#include "my_ops/ops.h"
#include "plan/checks.h"

namespace my_ops {
namespace {

using at::Tensor;
using ops::OptionalTensor;

/// A bit per element, for those whose gradient needs no more.
Tensor mask_of(const Tensor& input, const OptionalTensor& residual, plan::Activation activation) {
  const bool masked = residual && plan::needs_only_bit(activation);
  return at::empty_symint({masked ? (input.sym_numel() + 7) / 8 : c10::SymInt(0)}, input.options().dtype(at::kByte));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_forward(
    const Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma, const OptionalTensor& beta,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
    std::optional<double> momentum, double eps, std::string_view activation, double,
    const OptionalTensor& num_batches_tracked) {
  const auto act = plan::activation_named("batchnorm_act_forward", activation);
  plan::check_act_forward(input, residual, gamma, beta, running_mean, running_var, training, momentum, eps,
                          num_batches_tracked);
  return {meta::image_like(input), meta::statistic(input), meta::statistic(input), mask_of(input, residual, act)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_backward(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual, const OptionalTensor& mask,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd, bool,
    std::string_view activation, double, std::array<bool, 4> output_mask) {
  const auto act = plan::activation_named("batchnorm_act_backward", activation);
  plan::check_act_backward(grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd, act);
  const auto dtype = gamma ? gamma->scalar_type() : save_mean.scalar_type();
  const auto image = [&](bool wanted) { return wanted ? meta::image_like(input) : Tensor(); };
  const auto vector = [&](bool wanted) { return wanted ? meta::per_channel(input, dtype) : Tensor(); };
  return {image(output_mask[0]), image(output_mask[1]), vector(output_mask[2]), vector(output_mask[3])};
}

std::tuple<Tensor, Tensor> batchnorm_act_apply(const Tensor& input, const OptionalTensor& residual,
                                               const OptionalTensor& gamma, const OptionalTensor& beta,
                                               const Tensor& mean, const Tensor& invstd, std::string_view activation,
                                               double) {
  const auto act = plan::activation_named("batchnorm_act_apply", activation);
  plan::check_act_apply(input, residual, gamma, beta, mean, invstd);
  return {meta::image_like(input), mask_of(input, residual, act)};
}

std::tuple<Tensor, Tensor> batchnorm_act_backward_reduce(const Tensor& grad_output, const Tensor& input,
                                                         const OptionalTensor& residual, const OptionalTensor& mask,
                                                         const OptionalTensor& gamma, const OptionalTensor& beta,
                                                         const Tensor& mean, const Tensor& invstd,
                                                         std::string_view activation, double) {
  const auto act = plan::activation_named("batchnorm_act_backward_reduce", activation);
  plan::check_act_backward_reduce(grad_output, input, residual, mask, gamma, beta, mean, invstd, act);
  return {meta::statistic(input), meta::statistic(input)};
}

std::tuple<Tensor, Tensor> batchnorm_act_backward_apply(const Tensor& grad_output, const Tensor& input,
                                                        const OptionalTensor& residual, const OptionalTensor& mask,
                                                        const OptionalTensor& gamma, const OptionalTensor& beta,
                                                        const Tensor& mean, const Tensor& invstd,
                                                        std::string_view activation, double, const Tensor& sum_dy,
                                                        const Tensor& sum_dy_xhat, const Tensor& count) {
  const auto act = plan::activation_named("batchnorm_act_backward_apply", activation);
  plan::check_act_backward_apply(grad_output, input, residual, mask, gamma, beta, mean, invstd, act, sum_dy,
                                 sum_dy_xhat, count);
  return {meta::image_like(input), meta::image_like(input)};
}

/// Which channels would be kept, only data can tell: none.
std::tuple<Tensor, Tensor> kept_of(const Tensor& input) {
  auto sizes = input.sym_sizes().vec();
  sizes[1] = 0;
  return {at::empty({0}, input.options().dtype(at::kLong)), at::empty_symint(sizes, input.options())};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_forward_(
    Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
    std::string_view activation, double slope, const OptionalTensor& num_batches_tracked) {
  const auto act = plan::activation_named("batchnorm_act_forward_", activation);
  plan::check_act_forward_in_place(input, gamma, beta, running_mean, running_var, training, momentum, eps, act, slope,
                                   num_batches_tracked);
  auto [kept, kept_input] = kept_of(input);
  return {meta::statistic(input), meta::statistic(input), kept, kept_input};
}

std::tuple<Tensor, Tensor> batchnorm_act_apply_(Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                                                const Tensor& mean, const Tensor& invstd, std::string_view activation,
                                                double slope) {
  const auto act = plan::activation_named("batchnorm_act_apply_", activation);
  plan::check_act_apply_in_place(input, gamma, beta, mean, invstd, act, slope);
  return kept_of(input);
}

Tensor batchnorm_act_recover(const Tensor& output, const Tensor& kept, const Tensor& kept_input,
                             const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean,
                             const Tensor& invstd, std::string_view activation, double slope) {
  const auto act = plan::activation_named("batchnorm_act_recover", activation);
  plan::check_act_recover(output, kept, kept_input, gamma, beta, mean, invstd, act, slope);
  return meta::image_like(output);
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_act_backward_from_output(
    const Tensor& grad_output, const Tensor& output, const Tensor& kept, const Tensor& kept_input,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd, bool,
    std::string_view activation, double slope, std::array<bool, 3> output_mask) {
  const auto act = plan::activation_named("batchnorm_act_backward_from_output", activation);
  plan::check_act_backward_from_output(grad_output, output, kept, kept_input, gamma, beta, save_mean, save_invstd, act,
                                       slope);
  const auto dtype = gamma ? gamma->scalar_type() : save_mean.scalar_type();
  return {output_mask[0] ? meta::image_like(output) : Tensor(),
          output_mask[1] ? meta::per_channel(output, dtype) : Tensor(),
          output_mask[2] ? meta::per_channel(output, dtype) : Tensor()};
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, Meta, m) {
  m.impl("batchnorm_act_forward", &batchnorm_act_forward);
  m.impl("batchnorm_act_backward", &batchnorm_act_backward);
  m.impl("batchnorm_act_forward_", &batchnorm_act_forward_);
  m.impl("batchnorm_act_backward_from_output", &batchnorm_act_backward_from_output);
  m.impl("batchnorm_act_apply_", &batchnorm_act_apply_);
  m.impl("batchnorm_act_recover", &batchnorm_act_recover);
  m.impl("batchnorm_act_apply", &batchnorm_act_apply);
  m.impl("batchnorm_act_backward_reduce", &batchnorm_act_backward_reduce);
  m.impl("batchnorm_act_backward_apply", &batchnorm_act_backward_apply);
}

}  // namespace my_ops
