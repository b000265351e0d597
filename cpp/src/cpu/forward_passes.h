// The passes of a forward operator, whatever it makes of (x - center) * scale + shift.
#pragma once

#include "cpu/coefficients.h"
#include "cpu/partials.h"
#include "cpu/schedule.h"

namespace my_ops::cpu {

/// Where the statistics of a forward operator come from, and which of them it moves.
struct StatisticsArguments {
  const std::optional<at::Tensor>& running_mean;
  const std::optional<at::Tensor>& running_var;
  bool training;
  std::optional<double> momentum;
  const std::optional<at::Tensor>& num_batches_tracked;
  bool staged = false;  // RunningStatistics says what for

  bool of_batch(const at::Tensor& x) const { return training && x.numel() > 0; }
};

/// map(region) for all of x, in one pass.
template <class T, class Map>
void map_everywhere(const at::Tensor& x, Map map) {
  if (x.numel() == 0) return;
  for_regions(plan::apply_partition(plan::shape_of(x), sizeof(T)), Order::forwards,
              [&](const Region& region, int64_t) { map(region); });
}

/// Mean, invstd and coefficients of the batch, and the running statistics, to be finished. schedule(partition, reduce,
/// finish) runs the pass over x.
template <class T, class Schedule, class A = Accumulator<T>>
RunningStatistics<A> batch_statistics(const at::Tensor& x, ForwardScratch<A>& scratch,
                                      const StatisticsArguments& arguments, Schedule schedule) {
  RunningStatistics<A> running(arguments.running_mean, arguments.running_var, arguments.momentum,
                               arguments.num_batches_tracked, arguments.staged);
  running.join(scratch.channels());
  const plan::Shape shape = plan::shape_of(x);
  const Partition part = plan::reduction_partition(shape, sizeof(T));
  const Kernels<T>& kernels = kernels_of<T>();
  const T* in = read<T>(x);
  Partials partials(part);
  schedule(
      part,
      [&](const Region& region, int64_t k) { kernels.stats(in, shape, region, partials.first(k), partials.second(k)); },
      [&](int64_t c0, int64_t c1) {
        partials.merge_moments(c0, c1);
        kernels.finish_forward(scratch.channels(), c0, c1, partials.first(0), partials.second(0), part.values);
      });
  return running;
}

/// Mean, invstd and coefficients from the running statistics; those of no values are mean 0 and variance 0.
template <class T, class A = Accumulator<T>>
void given_statistics(const at::Tensor& x, ForwardScratch<A>& scratch, const StatisticsArguments& arguments) {
  const int64_t channels = x.size(1);
  const ChannelVector<A> mean(arguments.training ? std::nullopt : arguments.running_mean, channels, A(0));
  const ChannelVector<A> var(arguments.training ? std::nullopt : arguments.running_var, channels, A(0));
  kernels_of<T>().finish_given(scratch.channels(), 0, channels, mean.data(), var.data());
}

/// Statistics and coefficients, then map(region) everywhere: of a batch, group by group while that is in the cache. The
/// running statistics are to be finished.
template <class T, class Map, class A = Accumulator<T>>
[[nodiscard]] RunningStatistics<A> forward_passes(const at::Tensor& x, ForwardScratch<A>& scratch,
                                                  const StatisticsArguments& arguments, Map map) {
  if (arguments.of_batch(x)) {
    return batch_statistics<T>(x, scratch, arguments, [&](const Partition& part, auto reduce_region, auto finish) {
      reduce_and_map(part, reduce_region, finish, map);
    });
  }
  given_statistics<T>(x, scratch, arguments);
  map_everywhere<T>(x, map);
  return {};
}

/// Statistics and coefficients alone.
template <class T, class A = Accumulator<T>>
[[nodiscard]] RunningStatistics<A> forward_statistics(const at::Tensor& x, ForwardScratch<A>& scratch,
                                                      const StatisticsArguments& arguments) {
  if (arguments.of_batch(x)) {
    return batch_statistics<T>(x, scratch, arguments, [&](const Partition& part, auto reduce_region, auto finish) {
      reduce(part, reduce_region, finish);
    });
  }
  given_statistics<T>(x, scratch, arguments);
  return {};
}

}  // namespace my_ops::cpu
