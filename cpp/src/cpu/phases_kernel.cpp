// The phase operators on the CPU: the passes of batchnorm_kernel.cpp one by one, for callers who put a collective or a
// recomputation between them.
#include <ATen/ops/full.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "cpu/backward_passes.h"
#include "cpu/coefficients.h"
#include "cpu/partials.h"
#include "cpu/schedule.h"
#include "math/normalization.h"
#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/outputs.h"
#include "plan/problem.h"

namespace my_ops::cpu {
namespace {

using at::Tensor;
using ops::OptionalTensor;
using plan::Shape;

Tensor count_of(int64_t values, const Tensor& like) { return at::full({1}, values, like.options().dtype(at::kLong)); }

int64_t values_per_channel(const Tensor& input) {
  int64_t values = input.size(0);
  for (int64_t d = 2; d < input.dim(); ++d) values *= input.size(d);
  return values;
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_stats(const Tensor& input) {
  plan::check_stats(input);
  const Tensor x = plan::dense(input);
  Tensor mean = empty_statistic(x);
  Tensor m2 = empty_statistic(x);
  if (x.numel() == 0) return {mean.zero_(), m2.zero_(), count_of(values_per_channel(x), x)};
  visit_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    const Shape shape = plan::shape_of(x);
    const Partition part = plan::reduction_partition(shape, sizeof(T));
    Partials partials(part);
    reduce(
        part,
        [&](const Region& region, int64_t chunk) {
          kernels_of<T>().stats(read<T>(x), shape, region, partials.first(chunk), partials.second(chunk));
        },
        [&](int64_t c0, int64_t c1) {
          partials.merge_moments(c0, c1);
          std::copy(partials.first(0) + c0, partials.first(0) + c1, write<A>(mean) + c0);
          std::copy(partials.second(0) + c0, partials.second(0) + c1, write<A>(m2) + c0);
        });
  });
  return {mean, m2, count_of(values_per_channel(x), x)};
}

/// (mean, M2) of the channels of R parts, joined in the order of the parts.
template <class A>
void merge_parts(const A* means, const A* m2s, const int64_t* counts, int64_t parts, int64_t channels, double* mean,
                 double* m2) {
  for (int64_t c = 0; c < channels; ++c) {
    math::Moments<double> total{0, 0, 0};
    for (int64_t part = 0; part < parts; ++part) {
      total = math::merge<double>(total, {means[part * channels + c], m2s[part * channels + c], counts[part]});
    }
    mean[c] = total.mean;
    m2[c] = total.m2;
  }
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_gather_stats(const Tensor& mean, const Tensor& m2, const Tensor& count,
                                                          const OptionalTensor& running_mean,
                                                          const OptionalTensor& running_var,
                                                          std::optional<double> momentum, double eps,
                                                          const OptionalTensor& num_batches_tracked) {
  plan::check_gather_stats(mean, m2, count, running_mean, running_var, momentum, eps, num_batches_tracked);
  const Tensor counts = count.contiguous();
  int64_t total = 0;
  for (int64_t part = 0; part < counts.size(0); ++part) {
    const int64_t values = read<int64_t>(counts)[part];
    TORCH_CHECK(values >= 0, "batchnorm_gather_stats: expected count of 0 or more in each part, got ", values);
    TORCH_CHECK(values <= std::numeric_limits<int64_t>::max() - total,
                "batchnorm_gather_stats: expected count of less than 2^63 in all parts, got more");
    total += values;
  }
  TORCH_CHECK_VALUE(total != 1,
                    "batchnorm_gather_stats: expected more than 1 value per channel when training, got 1 in all parts");
  const Tensor means = mean.contiguous();
  const Tensor m2s = m2.contiguous();
  const int64_t channels = means.size(1);
  Tensor out_mean = empty_statistic(means);
  Tensor out_invstd = empty_statistic(means);
  const Tensor total_count = count_of(total, mean);
  const auto run = [&](auto accumulator) {
    using A = decltype(accumulator);
    Scratch<double> merged(2 * channels);
    merge_parts(read<A>(means), read<A>(m2s), read<int64_t>(counts), means.size(0), channels, merged,
                merged + channels);
    ForwardScratch<A> scratch(channels, std::nullopt, std::nullopt, out_mean, out_invstd, eps);
    const bool updates = total > 0;
    RunningStatistics<A> running(running_mean, running_var, momentum, num_batches_tracked);
    if (updates) running.join(scratch.channels());
    kernels_of<A>().finish_forward(scratch.channels(), 0, channels, merged, merged + channels,
                                   std::max(total, int64_t{1}));
    if (updates) running.finish();
  };
  mean.scalar_type() == at::kDouble ? run(double{}) : run(float{});
  return {out_mean, out_invstd, total_count};
}

/// One pass over a dense x; output laid out as x.
void apply_to(const Tensor& output, const Tensor& x, const OptionalTensor& gamma, const OptionalTensor& beta,
              const Tensor& mean, const Tensor& invstd) {
  if (x.numel() == 0) return;
  visit_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    const Shape shape = plan::shape_of(x);
    const ChannelVector<A> means(mean);
    const ChannelVector<A> invstds(invstd);
    const ChannelVector<A> gammas(gamma, shape.c, A(1));
    const ChannelVector<A> betas(beta, shape.c, A(0));
    Scratch<A> scales(shape.c);
    for (int64_t c = 0; c < shape.c; ++c) scales[c] = gammas.data()[c] * invstds.data()[c];
    const ForwardCoefficients<A> coefficients{means.data(), scales, betas.data()};
    const T* in = read<T>(x);
    T* out = write<T>(output);
    const bool stream = streams(output, {in});
    for_regions(plan::apply_partition(shape, sizeof(T)), Order::forwards, [&](const Region& region, int64_t) {
      kernels_of<T>().apply(in, out, shape, region, coefficients, stream);
    });
  });
}

Tensor batchnorm_apply(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean,
                       const Tensor& invstd) {
  plan::check_apply(input, gamma, beta, mean, invstd);
  const Tensor x = plan::dense(input);
  Tensor output = empty_image(x);
  apply_to(output, x, gamma, beta, mean, invstd);
  return output;
}

Tensor& batchnorm_apply_out(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                            const Tensor& mean, const Tensor& invstd, Tensor& out) {
  plan::check_apply(input, gamma, beta, mean, invstd);
  plan::check_apply_out(input, gamma, beta, mean, invstd, out);
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
  const Tensor x = plan::dense(input);
  const Gradients sums = empty_gradients(x, false, true, true);
  if (x.numel() == 0) {
    sums.zero();
  } else {
    const Tensor dy = plan::dense_like(grad_output, x);
    visit_element(x.scalar_type(), [&](auto element) {
      using T = decltype(element);
      const Shape shape = plan::shape_of(x);
      const ChannelVector<Accumulator<T>> means(mean);
      const ChannelVector<Accumulator<T>> invstds(invstd);
      backward_sums<T>(shape, 2 * sizeof(T), sums, [&](const Region& region, double* sum_dy, double* sum_dy_xhat) {
        kernels_of<T>().backward_reduce(read<T>(dy), read<T>(x), shape, region, means.data(), invstds.data(), sum_dy,
                                        sum_dy_xhat);
      });
    });
  }
  return {sums.beta, sums.gamma};
}

/// One pass over grad_output and a dense x; grad_input laid out as x.
void backward_apply_to(const Tensor& grad_input, const Tensor& grad_output, const Tensor& x,
                       const OptionalTensor& gamma, const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                       const Tensor& sum_dy_xhat, const Tensor& count) {
  if (x.numel() == 0) return;
  const Tensor dy = plan::dense_like(grad_output, x);
  visit_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    const Shape shape = plan::shape_of(x);
    const Tensor sums = sum_dy.to(at::kDouble).contiguous();
    const Tensor sums_xhat = sum_dy_xhat.to(at::kDouble).contiguous();
    const BackwardScratch<A> scratch(shape.c, gamma, mean, invstd);
    kernels_of<T>().finish_backward(scratch.channels(), 0, shape.c, read<double>(sums), read<double>(sums_xhat),
                                    *read<int64_t>(count));
    const T* in = read<T>(x);
    const T* grad = read<T>(dy);
    T* out = write<T>(grad_input);
    const bool stream = streams(grad_input, {grad, in});
    for_regions(plan::elementwise_partition(shape, sizeof(T)), Order::forwards, [&](const Region& region, int64_t) {
      kernels_of<T>().backward_apply(grad, in, out, shape, region, scratch.training(), stream);
    });
  });
}

void check_count(const Tensor& input, const Tensor& count) {
  if (input.numel() == 0) return;
  const int64_t values = *read<int64_t>(count);
  TORCH_CHECK(values > 0, "batchnorm_backward_apply: expected count of 1 or more, got ", values);
}

Tensor batchnorm_backward_apply(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                                const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                                const Tensor& sum_dy_xhat, const Tensor& count) {
  plan::check_backward_apply(grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat, count);
  check_count(input, count);
  const Tensor x = plan::dense(input);
  Tensor grad_input = empty_image(x);
  backward_apply_to(grad_input, grad_output, x, gamma, mean, invstd, sum_dy, sum_dy_xhat, count);
  return grad_input;
}

Tensor& batchnorm_backward_apply_out(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                                     const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                                     const Tensor& sum_dy_xhat, const Tensor& count, Tensor& out) {
  plan::check_backward_apply(grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat, count);
  plan::check_backward_apply_out(grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat, count, out);
  check_count(input, count);
  const Tensor x = plan::dense(input);
  plan::resize_image(out, x);
  const Tensor grad_input = plan::image_to_fill(out, x);
  backward_apply_to(grad_input, grad_output, x, gamma, mean, invstd, sum_dy, sum_dy_xhat, count);
  plan::deliver(grad_input, out);
  return out;
}

}  // namespace
}  // namespace my_ops::cpu

TORCH_LIBRARY_IMPL(my_ops, CPU, m) {
  m.impl("batchnorm_stats", &my_ops::cpu::batchnorm_stats);
  m.impl("batchnorm_gather_stats", &my_ops::cpu::batchnorm_gather_stats);
  m.impl("batchnorm_apply", &my_ops::cpu::batchnorm_apply);
  m.impl("batchnorm_backward_reduce", &my_ops::cpu::batchnorm_backward_reduce);
  m.impl("batchnorm_backward_apply", &my_ops::cpu::batchnorm_backward_apply);
  m.impl("batchnorm_apply.out", &my_ops::cpu::batchnorm_apply_out);
  m.impl("batchnorm_backward_apply.out", &my_ops::cpu::batchnorm_backward_apply_out);
}
