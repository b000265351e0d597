#include "sync/phases.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <c10/core/GradMode.h>

namespace my_ops::sync {
namespace {

using at::Tensor;

/// What a rank tells the others: mean, M2 and, in the last 8 bytes, the bits of the count. C channels take
/// 8*C + 8 bytes (16*C + 8 in float64): no rounding of the count, and nothing else.
Tensor packed(const Tensor& mean, const Tensor& m2, const Tensor& count) {
  return at::cat({mean, m2, count.view(mean.scalar_type())});
}

/// mean [R, C], M2 [R, C] and count [R] of R messages.
std::tuple<Tensor, Tensor, Tensor> unpacked(const Tensor& messages, const c10::SymInt& channels) {
  const auto length = messages.sym_size(1);
  const Tensor counts = messages.detach().narrow_symint(1, 2 * channels, length - 2 * channels);
  return {messages.narrow_symint(1, 0, channels), messages.narrow_symint(1, channels, channels),
          counts.contiguous().view(at::kLong).flatten()};
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> statistics(const Tensor& input, const OptionalTensor& running_mean,
                                              const OptionalTensor& running_var, std::optional<double> momentum,
                                              double eps, const OptionalTensor& num_batches_tracked,
                                              const Group& group) {
  auto [mean, m2, count] = ops::batchnorm_stats(input);
  const Tensor messages = ops::all_gather(packed(mean, m2, count), group.size, group.name);
  auto [means, m2s, counts] = unpacked(messages, input.sym_size(1));
  return ops::batchnorm_gather_stats(means, m2s, counts, running_mean, running_var, momentum, eps, num_batches_tracked);
}

SumOverRanks::SumOverRanks(const Tensor& first, const Tensor& second, const Group& group)
    : dtype_(first.scalar_type()) {
  const Tensor part = at::cat({first, second});
  if (c10::GradMode::is_enabled() || part._fw_grad(/*level=*/0).defined()) {
    parts_ = ops::all_gather(part, group.size, group.name);  // with derivatives
  } else {
    pending_ = start_all_gather(part, group);
  }
}

std::tuple<Tensor, Tensor> SumOverRanks::total() const {
  const Tensor parts = pending_ ? pending_->wait() : parts_;
  const Tensor sums = parts.sum(/*dim=*/0, /*keepdim=*/false, at::kDouble).to(dtype_);
  const auto channels = sums.sym_size(0) / 2;
  return {sums.narrow_symint(0, 0, channels), sums.narrow_symint(0, channels, channels)};
}

std::tuple<Tensor, OptionalTensor> Part::apply() const {
  if (act.is_identity() && !residual) return {ops::batchnorm_apply(input, gamma, beta, mean, invstd), std::nullopt};
  return ops::batchnorm_act_apply(input, residual, gamma, beta, mean, invstd, act.name, act.slope);
}

/// With dz = dy * act'(z), which is the residual's gradient, in the place of dy: the sums leave before the gradients of
/// gamma and beta are finished, and are awaited after.
std::array<Tensor, 4> Part::gradients(const Tensor& dy, const OptionalTensor& mask, const Group& group,
                                      std::array<bool, 4> wanted, at::ScalarType beta_dtype) const {
  auto [sum_dz, sum_dz_xhat] = act.is_identity()
                                   ? ops::batchnorm_backward_reduce(dy, input, mean, invstd)
                                   : ops::batchnorm_act_backward_reduce(dy, input, residual, mask, gamma, beta, mean,
                                                                        invstd, act.name, act.slope);
  std::optional<SumOverRanks> sums;
  if (wanted[0]) sums.emplace(sum_dz, sum_dz_xhat, group);
  std::array<Tensor, 4> out;
  if (wanted[2]) out[2] = sum_dz_xhat.to(gamma ? gamma->scalar_type() : mean.scalar_type());
  if (wanted[3]) out[3] = sum_dz.to(beta_dtype);
  if (sums) std::tie(sum_dz, sum_dz_xhat) = sums->total();
  if (act.is_identity()) {
    if (wanted[0]) out[0] = ops::batchnorm_backward_apply(dy, input, gamma, mean, invstd, sum_dz, sum_dz_xhat, count);
    if (wanted[1]) out[1] = dy;
  } else if (wanted[0] || wanted[1]) {
    auto [dx, dz] = ops::batchnorm_act_backward_apply(dy, input, residual, mask, gamma, beta, mean, invstd, act.name,
                                                      act.slope, sum_dz, sum_dz_xhat, count);
    if (wanted[0]) out[0] = dx;
    if (wanted[1]) out[1] = dz;
  }
  return out;
}

}  // namespace my_ops::sync
