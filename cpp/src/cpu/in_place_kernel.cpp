// Batch normalization and activation over the input, on the CPU.
#include <torch/library.h>

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

}  // namespace
}  // namespace my_ops::cpu

TORCH_LIBRARY_IMPL(my_ops, CPU, m) {
  m.impl("batchnorm_act_forward_", &my_ops::cpu::batchnorm_act_forward_);
  m.impl("batchnorm_act_apply_", &my_ops::cpu::batchnorm_act_apply_);
}
