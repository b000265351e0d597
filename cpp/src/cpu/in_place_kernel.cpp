// Batch normalization and activation over the input, on the CPU. The backward pass reads dy and y twice and writes dx,
// as much as that of plain batch normalization.
#include <torch/library.h>

#include "cpu/act_map.h"
#include "cpu/backward_passes.h"
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
    kept_input = plan::input_to_keep(x, kept);
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
  const Tensor kept_input = plan::input_to_keep(x, kept);
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

/// Of all channels, from y = act(z). With t = inverse(y) = z, which is xhat * gamma + beta,
///
///   xhat = (t - beta) * (1 / gamma)
///   dx = (dz + (t - beta) * x_scale) * dy_scale + shift, x_scale = -sum(dz * xhat) / (M * gamma)
///
/// and what else is in it as in batchnorm_backward: the same passes, with beta for mean and 1 / gamma for invstd.
template <class T, class A = Accumulator<T>>
void backward_from_output(const Tensor& grad_output, const Tensor& output, const OptionalTensor& gamma,
                          const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd, bool training,
                          const Epilogue<T>& inverse, const Gradients& wanted) {
  const plan::Shape shape = plan::shape_of(output);
  const Kernels<T>& kernels = kernels_of<T>();
  const T* dy = read<T>(grad_output);
  const T* y = read<T>(output);
  T* dx = wanted.input.defined() ? write<T>(wanted.input) : nullptr;
  const bool stream = dx && streams(wanted.input, {dy, y});
  BackwardScratch<A> scratch(shape.c, gamma, save_mean, save_invstd);
  const BackwardChannels<A>& channels = scratch.channels();
  const ChannelVector<A> betas(beta, shape.c, A(0));
  Scratch<A> per_gamma(shape.c);
  for (int64_t c = 0; c < shape.c; ++c) per_gamma[c] = A(1) / channels.gamma[c];
  BackwardCoefficients<A> k = training ? scratch.training() : scratch.eval(shape.c);
  k.mean = betas.data();
  backward_passes<T>(
      shape, 2 * sizeof(T), training, /*keeps=*/false, wanted,
      [&](const Region& region, double* sum_dz, double* sum_dz_xhat) {
        kernels.act_backward_reduce(dy, y, shape, region, betas.data(), per_gamma, inverse, sum_dz, sum_dz_xhat);
      },
      [&](int64_t c0, int64_t c1, const double* sum_dz, const double* sum_dz_xhat, int64_t count) {
        kernels.finish_backward(channels, c0, c1, sum_dz, sum_dz_xhat, count);
        const double per_value = 1 / static_cast<double>(count);
        for (int64_t c = c0; c < c1; ++c) {
          channels.x_scale[c] = static_cast<A>(-per_value * per_gamma[c] * sum_dz_xhat[c]);
        }
      },
      [&](const Region& region) { kernels.act_backward_apply(dy, y, dx, shape, region, k, inverse, stream); });
}

/// Of what was kept, as it would be anyway; of the other channels from the output.
std::tuple<Tensor, Tensor, Tensor> batchnorm_act_backward_from_output(
    const Tensor& grad_output, const Tensor& output, const Tensor& kept, const Tensor& kept_input,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd,
    bool training, std::string_view activation, double slope, ops::OutputMask output_mask) {
  const char* op = "batchnorm_act_backward_from_output";
  const auto named = plan::activation_named(op, activation);
  plan::check_act_backward_from_output(grad_output, output, kept, kept_input, gamma, beta, save_mean, save_invstd,
                                       named, slope);
  plan::check_kept(op, kept, output.size(1));
  const Tensor y = plan::dense(output);
  const Tensor dy = plan::dense_like(grad_output, y);
  const auto of_input = [&](const Tensor& dy, const Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta,
                            const Tensor& mean, const Tensor& invstd) {
    return ops::batchnorm_act_backward(dy, x, std::nullopt, std::nullopt, gamma, beta, mean, invstd, training,
                                       activation, slope, {output_mask[0], false, output_mask[1], output_mask[2]});
  };
  if (plan::keeps_all(kept, y.size(1))) {
    auto [dx, none, dgamma, dbeta] = of_input(dy, plan::dense_like(kept_input, y), gamma, beta, save_mean, save_invstd);
    return {dx, dgamma, dbeta};
  }
  const Gradients wanted = empty_gradients(y, output_mask[0], output_mask[1], output_mask[2]);
  if (y.numel() == 0) {
    wanted.zero();
  } else if (wanted.any()) {
    visit_element(y.scalar_type(), [&](auto element) {
      using T = decltype(element);
      Epilogue<T> inverse{named, static_cast<Accumulator<T>>(slope)};
      inverse.of_output = true;
      backward_from_output<T>(dy, y, gamma, beta, save_mean, save_invstd, training, inverse, wanted);
    });
  }
  Gradients result{wanted.input, as_gamma(wanted.gamma, gamma), as_gamma(wanted.beta, gamma)};
  if (kept.size(0) > 0) {
    const auto of_kept = [&](const Tensor& vector) { return vector.index_select(0, kept); };
    const auto of_kept_if = [&](const OptionalTensor& vector) {
      return vector ? OptionalTensor(of_kept(*vector)) : std::nullopt;
    };
    auto [dx, none, dgamma, dbeta] = of_input(dy.index_select(1, kept), kept_input, of_kept_if(gamma), of_kept_if(beta),
                                              of_kept(save_mean), of_kept(save_invstd));
    if (output_mask[0]) result.input.index_copy_(1, kept, dx);
    if (output_mask[1]) result.gamma.index_copy_(0, kept, dgamma);
    if (output_mask[2]) result.beta.index_copy_(0, kept, dbeta);
  }
  return {result.input, result.gamma, result.beta};
}

}  // namespace
}  // namespace my_ops::cpu

TORCH_LIBRARY_IMPL(my_ops, CPU, m) {
  m.impl("batchnorm_act_forward_", &my_ops::cpu::batchnorm_act_forward_);
  m.impl("batchnorm_act_apply_", &my_ops::cpu::batchnorm_act_apply_);
  m.impl("batchnorm_act_backward_from_output", &my_ops::cpu::batchnorm_act_backward_from_output);
}
