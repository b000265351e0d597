// Whole batch normalization on the CPU. Bytes moved, with x of B bytes: training forward reads x twice (the second time
// from the cache where a group of channels fits) and writes y; inference reads and writes once; backward reads dy and x
// twice and writes dx.
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

#include "cpu/coefficients.h"
#include "cpu/partials.h"
#include "cpu/schedule.h"
#include "ops.h"
#include "plan/checks.h"
#include "plan/problem.h"

namespace my_ops::cpu {
namespace {

using at::Tensor;
using ops::OptionalTensor;
using ops::OutputMask;
using plan::Shape;

/// Statistics, coefficients and output in two passes over x.
template <class T, class A = Accumulator<T>>
void forward_training(const Tensor& input, const Tensor& output, const ForwardScratch<A>& scratch,
                      const ForwardChannels<A>& channels) {
  const Shape shape = plan::shape_of(input);
  const Partition part = plan::reduction_partition(shape, sizeof(T));
  const Kernels<T>& kernels = kernels_of<T>();
  const T* x = read<T>(input);
  T* y = write<T>(output);
  const bool stream = streams(output);
  Partials partials(part);
  reduce_and_map(
      part,
      [&](const Region& region, int64_t k) { kernels.stats(x, shape, region, partials.first(k), partials.second(k)); },
      [&](int64_t c0, int64_t c1) {
        partials.merge_moments(c0, c1);
        kernels.finish_forward(channels, c0, c1, partials.first(0), partials.second(0), part.values);
      },
      [&](const Region& region) { kernels.apply(x, y, shape, region, scratch.coefficients(), stream); });
}

/// Output from given coefficients in one pass over x.
template <class T, class A = Accumulator<T>>
void forward_eval(const Tensor& input, const Tensor& output, const ForwardScratch<A>& scratch) {
  if (input.numel() == 0) return;
  const Shape shape = plan::shape_of(input);
  const T* x = read<T>(input);
  T* y = write<T>(output);
  const bool stream = streams(output);
  for_regions(plan::elementwise_partition(shape, sizeof(T)), Order::forwards, [&](const Region& region, int64_t) {
    kernels_of<T>().apply(x, y, shape, region, scratch.coefficients(), stream);
  });
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_forward(const Tensor& input, const OptionalTensor& gamma,
                                                     const OptionalTensor& beta, const OptionalTensor& running_mean,
                                                     const OptionalTensor& running_var, bool training,
                                                     std::optional<double> momentum, double eps,
                                                     const OptionalTensor& num_batches_tracked) {
  plan::check_forward(input, gamma, beta, running_mean, running_var, training, momentum, eps, num_batches_tracked);
  const Tensor x = plan::dense(input);
  const int64_t channels = x.size(1);
  Tensor output = empty_image(x);
  Tensor save_mean = empty_statistic(x);
  Tensor save_invstd = empty_statistic(x);
  visit_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    ForwardScratch<A> scratch(channels, gamma, beta, save_mean, save_invstd, eps);
    if (training && x.numel() > 0) {
      RunningStatistics<A> running(running_mean, running_var, momentum, num_batches_tracked);
      running.join(scratch.channels());
      forward_training<T>(x, output, scratch, scratch.channels());
      running.finish();
      return;
    }
    // Given statistics; those of no values are mean 0 and variance 0.
    const ChannelVector<A> mean(training ? std::nullopt : running_mean, channels, A(0));
    const ChannelVector<A> var(training ? std::nullopt : running_var, channels, A(0));
    kernels_of<T>().finish_given(scratch.channels(), 0, channels, mean.data(), var.data());
    forward_eval<T>(x, output, scratch);
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
void backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma, const Tensor& save_mean,
              const Tensor& save_invstd, bool training, const Gradients& wanted) {
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

std::tuple<Tensor, Tensor, Tensor> batchnorm_backward(const Tensor& grad_output, const Tensor& input,
                                                      const OptionalTensor& gamma, const Tensor& save_mean,
                                                      const Tensor& save_invstd, bool training,
                                                      OutputMask output_mask) {
  plan::check_backward(grad_output, input, gamma, save_mean, save_invstd);
  const Tensor x = plan::dense(input);
  const bool empty = x.numel() == 0;
  const auto statistic = [&](bool wanted) {
    if (!wanted) return Tensor();
    return empty ? at::zeros({x.size(1)}, save_mean.options()) : empty_statistic(x);
  };
  const Gradients wanted{output_mask[0] ? empty_image(x) : Tensor(), statistic(output_mask[1]),
                         statistic(output_mask[2])};
  if (!empty && (output_mask[0] || output_mask[1] || output_mask[2])) {
    const Tensor dy = plan::dense_like(grad_output, x);
    visit_element(x.scalar_type(), [&](auto element) {
      backward<decltype(element)>(dy, x, gamma, save_mean, save_invstd, training, wanted);
    });
  }
  const auto as_gamma = [&](const Tensor& gradient) {
    const bool other = gamma && gradient.defined() && gradient.scalar_type() != gamma->scalar_type();
    return other ? gradient.to(gamma->scalar_type()) : gradient;
  };
  return {wanted.input, as_gamma(wanted.gamma), as_gamma(wanted.beta)};
}

}  // namespace
}  // namespace my_ops::cpu

TORCH_LIBRARY_IMPL(my_ops, CPU, m) {
  m.impl("batchnorm_forward", &my_ops::cpu::batchnorm_forward);
  m.impl("batchnorm_backward", &my_ops::cpu::batchnorm_backward);
}
