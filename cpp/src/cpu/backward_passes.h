// The passes of a backward operator, whatever makes dz of dy.
#pragma once

#include <algorithm>

#include "cpu/coefficients.h"
#include "cpu/partials.h"
#include "cpu/schedule.h"

namespace my_ops::cpu {

/// What a backward pass is asked for; undefined tensors are not wanted. Those of gamma and beta are in the accumulation
/// dtype.
struct Gradients {
  at::Tensor input;
  at::Tensor gamma;
  at::Tensor beta;

  bool any() const { return input.defined() || gamma.defined() || beta.defined(); }
  void zero() const {
    for (const at::Tensor& sums : {gamma, beta}) {
      if (sums.defined()) sums.zero_();
    }
  }
};

/// Those of a dense x, by output_mask.
inline Gradients empty_gradients(const at::Tensor& x, bool input, bool gamma, bool beta) {
  return {input ? empty_image(x) : at::Tensor(), gamma ? empty_statistic(x) : at::Tensor(),
          beta ? empty_statistic(x) : at::Tensor()};
}

/// A gradient of gamma or beta in gamma's dtype.
inline at::Tensor as_gamma(const at::Tensor& gradient, const std::optional<at::Tensor>& gamma) {
  const bool other = gamma && gradient.defined() && gradient.scalar_type() != gamma->scalar_type();
  return other ? gradient.to(gamma->scalar_type()) : gradient;
}

/// Training: both sums, then dx, which depends on them. Eval: dx depends on dz alone, so that one visit does both.
///
///   reduce_region(region, sum_dz, sum_dz_xhat)        both sums; dz, if that is to be kept (`keeps`)
///   finish(c0, c1, sum_dz, sum_dz_xhat, count)        the coefficients of map in training
///   map(region)                                       dx
///
/// bytes_per_value: of all tensors that reduce_region touches.
template <class T, class Reduce, class Finish, class Map>
void backward_passes(const plan::Shape& shape, int64_t bytes_per_value, bool training, bool keeps,
                     const Gradients& wanted, Reduce reduce_region, Finish finish, Map map) {
  using A = Accumulator<T>;
  const bool maps = wanted.input.defined();
  if (maps && !training && !keeps && !wanted.gamma.defined() && !wanted.beta.defined()) {
    for_regions(plan::elementwise_partition(shape, sizeof(T)), Order::forwards,
                [&](const Region& region, int64_t) { map(region); });
    return;
  }
  const Partition part = plan::reduction_partition(shape, bytes_per_value);
  Partials partials(part);
  A* dgamma = wanted.gamma.defined() ? write<A>(wanted.gamma) : nullptr;
  A* dbeta = wanted.beta.defined() ? write<A>(wanted.beta) : nullptr;
  const auto visit = [&](const Region& region, int64_t chunk) {
    reduce_region(region, partials.first(chunk), partials.second(chunk));
    if (maps && !training) map(region);
  };
  const auto finish_channels = [&](int64_t c0, int64_t c1) {
    partials.add_up(c0, c1);
    if (dbeta) std::copy(partials.first(0) + c0, partials.first(0) + c1, dbeta + c0);
    if (dgamma) std::copy(partials.second(0) + c0, partials.second(0) + c1, dgamma + c0);
    if (maps && training) finish(c0, c1, partials.first(0), partials.second(0), part.values);
  };
  if (maps && training) {
    reduce_and_map(part, visit, finish_channels, map);
  } else {
    reduce(part, visit, finish_channels);
  }
}

/// The sums alone.
template <class T, class Reduce>
void backward_sums(const plan::Shape& shape, int64_t bytes_per_value, const Gradients& wanted, Reduce reduce_region) {
  const auto nothing = [](auto...) {};
  backward_passes<T>(shape, bytes_per_value, /*training=*/false, /*keeps=*/false, wanted, reduce_region, nothing,
                     nothing);
}

}  // namespace my_ops::cpu
