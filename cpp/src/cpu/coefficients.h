// The arrays of per-channel work: the operator's tensors in the accumulation type, and scratch for the coefficients.
#pragma once

#include "cpu/elements.h"
#include "plan/problem.h"

namespace my_ops::cpu {

template <class A>
class ForwardScratch {
 public:
  ForwardScratch(int64_t channels, const std::optional<at::Tensor>& gamma, const std::optional<at::Tensor>& beta,
                 const at::Tensor& mean, const at::Tensor& invstd, double eps, int64_t images = 1)
      : gamma_(gamma, channels, A(1)), beta_(beta, channels, A(0)), memory_(3 * images * channels) {
    A* scratch = memory_;
    const int64_t results = images * channels;
    channels_ = {gamma_.data(),
                 beta_.data(),
                 write<A>(mean),
                 write<A>(invstd),
                 scratch,
                 scratch + results,
                 scratch + 2 * results,
                 nullptr,
                 nullptr,
                 0.0,
                 eps};
  }

  ForwardChannels<A>& channels() { return channels_; }
  ForwardCoefficients<A> coefficients(int64_t first = 0) const {
    return {channels_.center + first, channels_.scale + first, channels_.shift + first};
  }

  /// Those of the image whose results begin at `first`: under the same gamma and beta.
  ForwardChannels<A> channels_of_image(int64_t first) const {
    ForwardChannels<A> image = channels_;
    for (A** results : {&image.mean, &image.invstd, &image.center, &image.scale, &image.shift}) *results += first;
    return image;
  }

 private:
  ChannelVector<A> gamma_;
  ChannelVector<A> beta_;
  Scratch<A> memory_;
  ForwardChannels<A> channels_;
};

template <class A>
class BackwardScratch {
 public:
  BackwardScratch(int64_t channels, const std::optional<at::Tensor>& gamma, const at::Tensor& mean,
                  const at::Tensor& invstd, int64_t images = 1)
      : gamma_(gamma, channels, A(1)), mean_(mean), invstd_(invstd), memory_(3 * images * channels) {
    A* scratch = memory_;
    const int64_t results = images * channels;
    channels_ = {gamma_.data(), invstd_.data(), scratch, scratch + results, scratch + 2 * results};
  }

  const A* mean() const { return mean_.data(); }
  const A* invstd() const { return invstd_.data(); }
  const BackwardChannels<A>& channels() const { return channels_; }

  /// Those of the image whose results begin at `first`: under the same gamma.
  BackwardChannels<A> channels_of_image(int64_t first) const {
    return {channels_.gamma, channels_.invstd + first, channels_.dy_scale + first, channels_.x_scale + first,
            channels_.shift + first};
  }

  BackwardCoefficients<A> training(int64_t first = 0) const {
    return {mean_.data() + first, channels_.dy_scale + first, channels_.x_scale + first, channels_.shift + first};
  }
  BackwardCoefficients<A> eval(int64_t channels) {
    for (int64_t c = 0; c < channels; ++c) channels_.dy_scale[c] = channels_.gamma[c] * channels_.invstd[c];
    return {mean_.data(), channels_.dy_scale, nullptr, nullptr};
  }

 private:
  ChannelVector<A> gamma_;
  ChannelVector<A> mean_;
  ChannelVector<A> invstd_;
  Scratch<A> memory_;
  BackwardChannels<A> channels_;
};

/// z = (x - mean) * gamma * invstd + beta, from saved statistics.
template <class A>
class ZCoefficients {
 public:
  ZCoefficients(int64_t channels, const std::optional<at::Tensor>& gamma, const std::optional<at::Tensor>& beta,
                const at::Tensor& invstd)
      : beta_(beta, channels, A(0)), scale_(channels) {
    const ChannelVector<A> gammas(gamma, channels, A(1));
    const ChannelVector<A> invstds(invstd);
    for (int64_t c = 0; c < channels; ++c) scale_[c] = gammas.data()[c] * invstds.data()[c];
  }

  AffineOfZ<A> get() { return {scale_, beta_.data()}; }

 private:
  ChannelVector<A> beta_;
  Scratch<A> scale_;
};

/// The running statistics of a training step: each optional, and the counter that momentum = None divides by. By
/// default there are none, and finish() does nothing.
template <class A>
class RunningStatistics {
 public:
  RunningStatistics() : RunningStatistics({}, {}, {}, {}) {}

  /// `staged`: for operators that may still fail after the pass; nothing is written before finish().
  RunningStatistics(const std::optional<at::Tensor>& mean, const std::optional<at::Tensor>& var,
                    std::optional<double> momentum, const std::optional<at::Tensor>& num_batches_tracked,
                    bool staged = false)
      : mean_(mean, staged),
        var_(var, staged),
        counter_(num_batches_tracked ? write<int64_t>(*num_batches_tracked) : nullptr) {
    momentum_ = momentum ? *momentum : (counter_ ? 1.0 / static_cast<double>(*counter_ + 1) : 0.0);
  }

  void join(ForwardChannels<A>& channels) {
    channels.running_mean = mean_.data();
    channels.running_var = var_.data();
    channels.momentum = momentum_;
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
  double momentum_;
};

}  // namespace my_ops::cpu
