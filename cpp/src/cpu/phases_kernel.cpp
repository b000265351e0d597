// The phase operators on the CPU: the passes of batchnorm_kernel.cpp one by one, for callers who put a collective or a
// recomputation between them.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <torch/library.h>

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
using plan::Shape;

Tensor count_of(int64_t values, const Tensor& like) { return at::full({1}, values, like.options().dtype(at::kLong)); }

int64_t values_per_channel(const Tensor& input) { return input.size(1) == 0 ? 0 : input.numel() / input.size(1); }

/// Runs `reduce_region` over all regions and hands the two merged doubles of each channel to `take`.
template <class Reduce, class Merge, class Take>
void reduce_channels(const Partition& part, Reduce reduce_region, Merge merge, Take take) {
  Partials partials(part);
  reduce(
      part,
      [&](const Region& region, int64_t k) { reduce_region(region, partials.first(k), partials.second(k)); },
      [&](int64_t c0, int64_t c1) {
        (partials.*merge)(c0, c1);
        for (int64_t c = c0; c < c1; ++c) take(c, partials.first(0)[c], partials.second(0)[c]);
      });
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_stats(const Tensor& input) {
  plan::check_stats(input);
  const Tensor x = plan::dense(input);
  Tensor mean = empty_statistic(x);
  Tensor m2 = empty_statistic(x);
  if (x.numel() == 0) return {mean.zero_(), m2.zero_(), count_of(0, x)};
  visit_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    const Shape shape = plan::shape_of(x);
    A* means = write<A>(mean);
    A* m2s = write<A>(m2);
    reduce_channels(
        plan::reduction_partition(shape, sizeof(T)),
        [&](const Region& region, double* first, double* second) {
          kernels_of<T>().stats(read<T>(x), shape, region, first, second);
        },
        &Partials::merge_moments,
        [&](int64_t c, double channel_mean, double channel_m2) {
          means[c] = static_cast<A>(channel_mean);
          m2s[c] = static_cast<A>(channel_m2);
        });
  });
  return {mean, m2, count_of(values_per_channel(x), x)};
}

template <class A>
void gather_stats(const Tensor& mean_parts, const Tensor& m2_parts, const Tensor& counts, const Tensor& mean,
                  const Tensor& invstd, RunningStatistics<A>& running, double eps, bool updates) {
  const int64_t parts = mean_parts.size(0);
  const int64_t channels = mean_parts.size(1);
  const A* means = read<A>(mean_parts);
  const A* m2s = read<A>(m2_parts);
  const int64_t* count = read<int64_t>(counts);
  for (int64_t c = 0; c < channels; ++c) {
    math::Moments<double> total{0, 0, 0};
    for (int64_t part = 0; part < parts; ++part) {
      total = math::merge<double>(total, {means[part * channels + c], m2s[part * channels + c], count[part]});
    }
    write<A>(mean)[c] = static_cast<A>(total.mean);
    write<A>(invstd)[c] = static_cast<A>(math::inverse_std(math::variance(total), eps));
    if (updates) running.update(c, total);
  }
  if (updates) running.finish();
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
    total += values;
  }
  const bool updates = total > 0 && (running_mean || running_var || num_batches_tracked);
  TORCH_CHECK_VALUE(total != 1,
                    "batchnorm_gather_stats: expected more than 1 value per channel when training, got 1 in all parts");
  Tensor out_mean = empty_statistic(mean);
  Tensor out_invstd = empty_statistic(mean);
  const auto run = [&](auto accumulator) {
    using A = decltype(accumulator);
    RunningStatistics<A> running(running_mean, running_var, momentum, num_batches_tracked);
    gather_stats<A>(mean.contiguous(), m2.contiguous(), counts, out_mean, out_invstd, running, eps, updates);
  };
  mean.scalar_type() == at::kDouble ? run(double{}) : run(float{});
  return {out_mean, out_invstd, count_of(total, mean)};
}

Tensor batchnorm_apply(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean,
                       const Tensor& invstd) {
  plan::check_apply(input, gamma, beta, mean, invstd);
  const Tensor x = plan::dense(input);
  Tensor output = at::empty_like(x);
  if (x.numel() == 0) return output;
  visit_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    const Shape shape = plan::shape_of(x);
    const ChannelVector<A> means(mean);
    const ChannelVector<A> invstds(invstd);
    ForwardScratch<A> scratch(shape.c, gamma, beta);
    for (int64_t c = 0; c < shape.c; ++c) scratch.set(c, means[c], invstds[c]);
    const T* in = read<T>(x);
    T* out = write<T>(output);
    for_regions(plan::elementwise_partition(shape, sizeof(T)), Order::forwards, [&](const Region& region, int64_t) {
      kernels_of<T>().apply(in, out, shape, region, scratch.coefficients());
    });
  });
  return output;
}

std::tuple<Tensor, Tensor> batchnorm_backward_reduce(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                                     const Tensor& invstd) {
  plan::check_backward_reduce(grad_output, input, mean, invstd);
  const Tensor x = plan::dense(input);
  Tensor sum_dy = empty_statistic(x);
  Tensor sum_dy_xhat = empty_statistic(x);
  if (x.numel() == 0) return {sum_dy.zero_(), sum_dy_xhat.zero_()};
  const Tensor dy = plan::dense_like(grad_output, x);
  visit_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    const Shape shape = plan::shape_of(x);
    const ChannelVector<A> means(mean);
    const ChannelVector<A> invstds(invstd);
    A* sums = write<A>(sum_dy);
    A* sums_xhat = write<A>(sum_dy_xhat);
    reduce_channels(
        plan::reduction_partition(shape, sizeof(T)),
        [&](const Region& region, double* first, double* second) {
          kernels_of<T>().backward_reduce(read<T>(dy), read<T>(x), shape, region, means.data(), invstds.data(), first,
                                          second);
        },
        &Partials::add_up,
        [&](int64_t c, double channel_sum, double channel_sum_xhat) {
          sums[c] = static_cast<A>(channel_sum);
          sums_xhat[c] = static_cast<A>(channel_sum_xhat);
        });
  });
  return {sum_dy, sum_dy_xhat};
}

Tensor batchnorm_backward_apply(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                                const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                                const Tensor& sum_dy_xhat, const Tensor& count) {
  plan::check_backward_apply(grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat, count);
  const Tensor x = plan::dense(input);
  Tensor grad_input = at::empty_like(x);
  if (x.numel() == 0) return grad_input;
  const int64_t values = *read<int64_t>(count);
  TORCH_CHECK(values > 0, "batchnorm_backward_apply: expected count of 1 or more, got ", values);
  const Tensor dy = plan::dense_like(grad_output, x);
  visit_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    const Shape shape = plan::shape_of(x);
    const ChannelVector<A> means(mean);
    const ChannelVector<A> invstds(invstd);
    const ChannelVector<A> sums(sum_dy);
    const ChannelVector<A> sums_xhat(sum_dy_xhat);
    BackwardScratch<A> scratch(shape.c, gamma, means, invstds);
    for (int64_t c = 0; c < shape.c; ++c) scratch.set_training(c, sums[c], sums_xhat[c], values);
    const T* in = read<T>(x);
    const T* grad = read<T>(dy);
    T* out = write<T>(grad_input);
    for_regions(plan::elementwise_partition(shape, sizeof(T)), Order::forwards, [&](const Region& region, int64_t) {
      kernels_of<T>().backward_apply(grad, in, out, shape, region, scratch.training());
    });
  });
  return grad_input;
}

}  // namespace
}  // namespace my_ops::cpu

TORCH_LIBRARY_IMPL(my_ops, CPU, m) {
  m.impl("batchnorm_stats", &my_ops::cpu::batchnorm_stats);
  m.impl("batchnorm_gather_stats", &my_ops::cpu::batchnorm_gather_stats);
  m.impl("batchnorm_apply", &my_ops::cpu::batchnorm_apply);
  m.impl("batchnorm_backward_reduce", &my_ops::cpu::batchnorm_backward_reduce);
  m.impl("batchnorm_backward_apply", &my_ops::cpu::batchnorm_backward_apply);
}
