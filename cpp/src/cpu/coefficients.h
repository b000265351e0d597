// Per-channel results and coefficients: what happens between the passes over memory.
#pragma once

#include "cpu/elements.h"
#include "math/normalization.h"
#include "plan/problem.h"

namespace my_ops::cpu {

/// The coefficients of y = (x - center) * scale + shift for all channels.
template <class A>
class ForwardScratch {
 public:
  ForwardScratch(int64_t channels, const std::optional<at::Tensor>& gamma, const std::optional<at::Tensor>& beta)
      : channels_(channels), gamma_(gamma), beta_(beta), memory_(3 * channels) {}

  void set(int64_t c, double mean, double invstd) {
    const auto affine = math::forward_affine<A>(mean, invstd, gamma_.value_or(c, A(1)), beta_.value_or(c, A(0)));
    memory_[c] = affine.center;
    memory_[channels_ + c] = affine.scale;
    memory_[2 * channels_ + c] = affine.shift;
  }

  ForwardCoefficients<A> coefficients() { return {memory_, memory_ + channels_, memory_ + 2 * channels_}; }

 private:
  int64_t channels_;
  ChannelVector<A> gamma_;
  ChannelVector<A> beta_;
  Scratch<A> memory_;
};

/// The coefficients of dx = dy * dy_scale + (x - mean) * x_scale + shift for all channels.
template <class A>
class BackwardScratch {
 public:
  BackwardScratch(int64_t channels, const std::optional<at::Tensor>& gamma, const ChannelVector<A>& mean,
                  const ChannelVector<A>& invstd)
      : channels_(channels), gamma_(gamma), mean_(mean), invstd_(invstd), memory_(3 * channels) {}

  void set_training(int64_t c, double sum_dy, double sum_dy_xhat, int64_t count) {
    const auto affine = math::backward_affine<A>(gamma_.value_or(c, A(1)), invstd_[c], sum_dy, sum_dy_xhat, count);
    memory_[c] = affine.dy_scale;
    memory_[channels_ + c] = affine.x_scale;
    memory_[2 * channels_ + c] = affine.shift;
  }

  void set_eval(int64_t c) { memory_[c] = gamma_.value_or(c, A(1)) * invstd_[c]; }

  BackwardCoefficients<A> training() { return {mean_.data(), memory_, memory_ + channels_, memory_ + 2 * channels_}; }
  BackwardCoefficients<A> eval() { return {nullptr, memory_, nullptr, nullptr}; }

 private:
  int64_t channels_;
  ChannelVector<A> gamma_;
  const ChannelVector<A>& mean_;
  const ChannelVector<A>& invstd_;
  Scratch<A> memory_;
};

/// The running statistics of a training step: each optional, and the counter that momentum = None divides by.
template <class A>
class RunningStatistics {
 public:
  RunningStatistics(const std::optional<at::Tensor>& mean, const std::optional<at::Tensor>& var,
                    std::optional<double> momentum, const std::optional<at::Tensor>& num_batches_tracked)
      : mean_(mean), var_(var), counter_(num_batches_tracked ? write<int64_t>(*num_batches_tracked) : nullptr) {
    factor_ = momentum ? *momentum : (counter_ ? 1.0 / static_cast<double>(*counter_ + 1) : 0.0);
  }

  void update(int64_t c, const math::Moments<double>& batch) {
    if (mean_) mean_[c] = static_cast<A>(math::update_running<double>(mean_[c], batch.mean, factor_));
    if (var_) var_[c] = static_cast<A>(math::update_running<double>(var_[c], math::unbiased_variance(batch), factor_));
  }

  void finish() {
    mean_.write_back();
    var_.write_back();
    if (counter_) ++*counter_;
  }

 private:
  WritableChannelVector<A> mean_;
  WritableChannelVector<A> var_;
  int64_t* counter_;
  double factor_;
};

/// A vector [C] of the accumulation type beside `input`.
inline at::Tensor empty_statistic(const at::Tensor& input) {
  return at::empty({input.size(1)}, input.options().dtype(plan::accumulation_dtype(input.scalar_type())));
}

}  // namespace my_ops::cpu
