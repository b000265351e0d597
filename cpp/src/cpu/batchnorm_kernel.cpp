// Whole batch normalization on the CPU. Bytes moved, with x of B bytes: training forward reads x twice (the second time
// from the cache where a group of channels fits) and writes y; inference reads and writes once; backward reads dy and x
// twice and writes dx.
#include <torch/library.h>

#include <algorithm>

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
    const bool stream = streams(output);
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

/// What the backward pass is asked for; undefined tensors are not wanted.
struct Gradients {
  Tensor input;
  Tensor gamma;
  Tensor beta;
};

/// Training: both sums, then dx, which depends on them. Eval: dx depends on dy alone, so that one pass does both.
template <class T, class A = Accumulator<T>>
void backward_passes(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                     const Tensor& save_mean, const Tensor& save_invstd, bool training, const Gradients& wanted) {
  const Shape shape = plan::shape_of(input);
  const Partition part = plan::reduction_partition(shape, 2 * sizeof(T));
  const Kernels<T>& kernels = kernels_of<T>();
  const T* dy = read<T>(grad_output);
  const T* x = read<T>(input);
  T* dx = wanted.input.defined() ? write<T>(wanted.input) : nullptr;
  const bool stream = dx && streams(wanted.input);
  A* dgamma = wanted.gamma.defined() ? write<A>(wanted.gamma) : nullptr;
  A* dbeta = wanted.beta.defined() ? write<A>(wanted.beta) : nullptr;
  BackwardScratch<A> scratch(part.channels, gamma, save_mean, save_invstd);
  Partials partials(part);

  const auto reduce_region = [&](const Region& region, int64_t k) {
    kernels.backward_reduce(dy, x, shape, region, scratch.mean(), scratch.invstd(), partials.first(k),
                            partials.second(k));
  };
  const auto finish = [&](int64_t c0, int64_t c1) {
    partials.add_up(c0, c1);
    if (dbeta) std::copy(partials.first(0) + c0, partials.first(0) + c1, dbeta + c0);
    if (dgamma) std::copy(partials.second(0) + c0, partials.second(0) + c1, dgamma + c0);
    if (training && dx) {
      kernels.finish_backward(scratch.channels(), c0, c1, partials.first(0), partials.second(0), part.values);
    }
  };
  if (!dx) {
    reduce(part, reduce_region, finish);
    return;
  }
  if (training) {
    reduce_and_map(part, reduce_region, finish, [&](const Region& region) {
      kernels.backward_apply(dy, x, dx, shape, region, scratch.training(), stream);
    });
    return;
  }
  const BackwardCoefficients<A> eval = scratch.eval(part.channels);
  const auto map = [&](const Region& region) { kernels.backward_apply(dy, x, dx, shape, region, eval, stream); };
  if (!dgamma && !dbeta) {
    for_regions(plan::elementwise_partition(shape, sizeof(T)), Order::forwards,
                [&](const Region& region, int64_t) { map(region); });
    return;
  }
  reduce(
      part,
      [&](const Region& region, int64_t k) {
        reduce_region(region, k);
        map(region);
      },
      finish);
}

/// All of a backward pass over a dense x; the gradients are dense, those of gamma and beta in the accumulation dtype.
void backward(const Tensor& grad_output, const Tensor& x, const OptionalTensor& gamma, const Tensor& save_mean,
              const Tensor& save_invstd, bool training, const Gradients& wanted) {
  if (x.numel() == 0) {
    if (wanted.gamma.defined()) wanted.gamma.zero_();
    if (wanted.beta.defined()) wanted.beta.zero_();
    return;
  }
  if (!wanted.input.defined() && !wanted.gamma.defined() && !wanted.beta.defined()) return;
  const Tensor dy = plan::dense_like(grad_output, x);
  visit_element(x.scalar_type(), [&](auto element) {
    backward_passes<decltype(element)>(dy, x, gamma, save_mean, save_invstd, training, wanted);
  });
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_backward(const Tensor& grad_output, const Tensor& input,
                                                      const OptionalTensor& gamma, const Tensor& save_mean,
                                                      const Tensor& save_invstd, bool training,
                                                      OutputMask output_mask) {
  plan::check_backward(grad_output, input, gamma, save_mean, save_invstd);
  const Tensor x = plan::dense(input);
  const Gradients wanted{output_mask[0] ? empty_image(x) : Tensor(), output_mask[1] ? empty_statistic(x) : Tensor(),
                         output_mask[2] ? empty_statistic(x) : Tensor()};
  backward(grad_output, x, gamma, save_mean, save_invstd, training, wanted);
  const auto as_gamma = [&](const Tensor& gradient) {
    const bool other = gamma && gradient.defined() && gradient.scalar_type() != gamma->scalar_type();
    return other ? gradient.to(gamma->scalar_type()) : gradient;
  };
  return {wanted.input, as_gamma(wanted.gamma), as_gamma(wanted.beta)};
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
