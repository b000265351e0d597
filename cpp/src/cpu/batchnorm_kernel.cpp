// Whole batch normalization on the CPU. Bytes moved, with x of B bytes: training forward reads x twice (the second time
// from the cache where a group of channels fits) and writes y; inference reads and writes once; backward reads dy and x
// twice and writes dx.
#include <torch/library.h>

#include "cpu/backward_passes.h"
#include "cpu/forward_passes.h"
#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/outputs.h"
#include "plan/problem.h"

namespace my_ops::cpu {
namespace {

using at::Tensor;
using ops::OptionalTensor;
using ops::OutputMask;
using plan::Shape;

/// All of a forward pass over a dense x: output laid out as x, dense save_mean and save_invstd. deliver() does with the
/// results what may still fail; then the running statistics move.
template <class Deliver>
void forward(const Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta,
             const StatisticsArguments& statistics, double eps, const Tensor& output, const Tensor& save_mean,
             const Tensor& save_invstd, Deliver deliver) {
  visit_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const Shape shape = plan::shape_of(x);
    const T* in = read<T>(x);
    T* out = write<T>(output);
    const bool stream = streams(output, {in});
    ForwardScratch<Accumulator<T>> scratch(x.size(1), gamma, beta, save_mean, save_invstd, eps);
    auto running = forward_passes<T>(x, scratch, statistics, [&](const Region& region) {
      kernels_of<T>().apply(in, out, shape, region, scratch.coefficients(), stream);
    });
    deliver();
    running.finish();
  });
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_forward(const Tensor& input, const OptionalTensor& gamma,
                                                     const OptionalTensor& beta, const OptionalTensor& running_mean,
                                                     const OptionalTensor& running_var, bool training,
                                                     std::optional<double> momentum, double eps,
                                                     const OptionalTensor& num_batches_tracked) {
  plan::check_forward(input, gamma, beta, running_mean, running_var, training, momentum, eps, num_batches_tracked);
  const Tensor x = plan::dense(input);
  Tensor output = empty_image(x);
  Tensor save_mean = empty_statistic(x);
  Tensor save_invstd = empty_statistic(x);
  forward(x, gamma, beta, {running_mean, running_var, training, momentum, num_batches_tracked}, eps, output, save_mean,
          save_invstd, [] {});
  return {output, save_mean, save_invstd};
}

std::tuple<Tensor&, Tensor&, Tensor&> batchnorm_forward_out(
    const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
    const OptionalTensor& num_batches_tracked, Tensor& output, Tensor& save_mean, Tensor& save_invstd) {
  plan::check_forward(input, gamma, beta, running_mean, running_var, training, momentum, eps, num_batches_tracked);
  plan::check_forward_out(input, gamma, beta, running_mean, running_var, num_batches_tracked, output, save_mean,
                          save_invstd);
  const Tensor x = plan::dense(input);
  plan::resize_image(output, x);
  plan::resize_channels(save_mean, x);
  plan::resize_channels(save_invstd, x);
  const Tensor y = plan::image_to_fill(output, x);
  const Tensor mean = statistic_to_fill(save_mean, save_mean.scalar_type());
  const Tensor invstd = statistic_to_fill(save_invstd, save_invstd.scalar_type());
  const bool delivers = !(y.is_same(output) && mean.is_same(save_mean) && invstd.is_same(save_invstd));
  forward(x, gamma, beta, {running_mean, running_var, training, momentum, num_batches_tracked, /*staged=*/delivers},
          eps, y, mean, invstd, [&] {
            plan::deliver(y, output);
            plan::deliver(mean, save_mean);
            plan::deliver(invstd, save_invstd);
          });
  return {output, save_mean, save_invstd};
}

/// All of a backward pass over a dense x; the gradients are dense.
void backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma, const Tensor& save_mean,
              const Tensor& save_invstd, bool training, const Gradients& wanted) {
  if (input.numel() == 0) return wanted.zero();
  if (!wanted.any()) return;
  const Tensor grad = plan::dense_like(grad_output, input);
  visit_element(input.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const Shape shape = plan::shape_of(input);
    const Kernels<T>& kernels = kernels_of<T>();
    const T* dy = read<T>(grad);
    const T* x = read<T>(input);
    T* dx = wanted.input.defined() ? write<T>(wanted.input) : nullptr;
    const bool stream = dx && streams(wanted.input, {dy, x});
    BackwardScratch<Accumulator<T>> scratch(shape.c, gamma, save_mean, save_invstd);
    const auto k = training ? scratch.training() : scratch.eval(shape.c);
    backward_passes<T>(
        shape, 2 * sizeof(T), training, /*keeps=*/false, wanted,
        [&](const Region& region, double* sum_dy, double* sum_dy_xhat) {
          kernels.backward_reduce(dy, x, shape, region, scratch.mean(), scratch.invstd(), sum_dy, sum_dy_xhat);
        },
        [&](int64_t c0, int64_t c1, const double* sum_dy, const double* sum_dy_xhat, int64_t count) {
          kernels.finish_backward(scratch.channels(), c0, c1, sum_dy, sum_dy_xhat, count);
        },
        [&](const Region& region) { kernels.backward_apply(dy, x, dx, shape, region, k, stream); });
  });
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_backward(const Tensor& grad_output, const Tensor& input,
                                                      const OptionalTensor& gamma, const Tensor& save_mean,
                                                      const Tensor& save_invstd, bool training,
                                                      OutputMask output_mask) {
  plan::check_backward(grad_output, input, gamma, save_mean, save_invstd);
  const Tensor x = plan::dense(input);
  const Gradients wanted = empty_gradients(x, output_mask[0], output_mask[1], output_mask[2]);
  backward(grad_output, x, gamma, save_mean, save_invstd, training, wanted);
  return {wanted.input, as_gamma(wanted.gamma, gamma), as_gamma(wanted.beta, gamma)};
}

std::tuple<Tensor&, Tensor&, Tensor&> batchnorm_backward_out(const Tensor& grad_output, const Tensor& input,
                                                             const OptionalTensor& gamma, const Tensor& save_mean,
                                                             const Tensor& save_invstd, bool training,
                                                             OutputMask output_mask, Tensor& grad_input,
                                                             Tensor& grad_gamma, Tensor& grad_beta) {
  plan::check_backward(grad_output, input, gamma, save_mean, save_invstd);
  plan::check_backward_out(grad_output, input, gamma, save_mean, save_invstd, output_mask, grad_input, grad_gamma,
                           grad_beta);
  const Tensor x = plan::dense(input);
  Gradients wanted;
  if (output_mask[0]) {
    plan::resize_image(grad_input, x);
    wanted.input = plan::image_to_fill(grad_input, x);
  }
  const auto vector_to_fill = [&](bool is_wanted, Tensor& out) {
    if (!is_wanted) return Tensor();
    plan::resize_channels(out, x);
    return statistic_to_fill(out, save_mean.scalar_type());
  };
  wanted.gamma = vector_to_fill(output_mask[1], grad_gamma);
  wanted.beta = vector_to_fill(output_mask[2], grad_beta);
  backward(grad_output, x, gamma, save_mean, save_invstd, training, wanted);
  if (output_mask[0]) plan::deliver(wanted.input, grad_input);
  if (output_mask[1]) plan::deliver(wanted.gamma, grad_gamma);
  if (output_mask[2]) plan::deliver(wanted.beta, grad_beta);
  return {grad_input, grad_gamma, grad_beta};
}

}  // namespace
}  // namespace my_ops::cpu

TORCH_LIBRARY_IMPL(my_ops, CPU, m) {
  m.impl("batchnorm_forward", &my_ops::cpu::batchnorm_forward);
  m.impl("batchnorm_backward", &my_ops::cpu::batchnorm_backward);
  m.impl("batchnorm_forward.out", &my_ops::cpu::batchnorm_forward_out);
  m.impl("batchnorm_backward.out", &my_ops::cpu::batchnorm_backward_out);
}
