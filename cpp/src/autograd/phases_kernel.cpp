// Derivatives of the phase operators.
#include <ATen/ops/ones_like.h>
#include <torch/library.h>

#include "autograd/formulas.h"
#include "autograd/node.h"
#include "autograd/tangents.h"
#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/problem.h"

namespace my_ops::autograd {
namespace {

/// (mean, M2) of input:  d mean / dx = 1/M      d M2 / dx = 2*(x - mean)
class StatsNode : public SavingNode<StatsNode, 2> {
 public:
  enum Saved { kInput, kMean };
  std::string name() const override { return "MyOpsBatchnormStatsBackward"; }

  variable_list apply(variable_list&& grads) override {
    const Tensor input = saved(kInput);
    const Tensor mean = saved(kMean);
    Tensor gradient;
    if (grads[0].defined()) {
      const Tensor per_value = grads[0] / c10::Scalar(values_per_channel(input));
      gradient = per_channel(per_value, input).expand_symint(input.sym_sizes());
    }
    if (grads[1].defined()) {
      const Tensor centered = input.to(mean.scalar_type()) - per_channel(mean, input);
      gradient = sum_of(gradient, centered * per_channel(2 * grads[1], input));
    }
    return {if_wanted(0, gradient, input.scalar_type())};
  }
};

/// mean' = sum(x')/M        M2' = 2*sum(x'*(x - mean)):  the sums of batchnorm_backward_reduce with invstd = 1
void set_stats_tangents(const Tensor& input, const Tensor& mean, const Tensor& m2) {
  if (!any_tangent(input)) return;
  auto [sum, sum_centered] =
      ops::batchnorm_backward_reduce(tangent_of(input), primal_of(input), mean, at::ones_like(mean));
  set_tangent(mean, sum / c10::Scalar(values_per_channel(input)));
  set_tangent(m2, 2 * sum_centered);
}

/// m_k, as a column of the parts' dtype, and M, which is 1 if there are no values.
struct Counts {
  Tensor part;
  Tensor total;
  Counts(const Tensor& count, const Tensor& means)
      : part(count.to(means.scalar_type()).unsqueeze(1)), total(part.sum().clamp_min(1)) {}
  Tensor share() const { return part / total; }
  /// M2 of an empty part is not read.
  Tensor has_values() const { return part.sign(); }
};

/// (mean, invstd) of R parts with m_k values each, M = sum m_k, var = sum(M2_k + m_k*(mean_k - mean)^2) / M:
///   d mean / d mean_k = m_k/M        d invstd / d M2_k = -invstd^3 / (2M)
///   d invstd / d mean_k = -invstd^3 * m_k * (mean_k - mean) / M
class GatherStatsNode : public SavingNode<GatherStatsNode, 4> {
 public:
  enum Saved { kMeans, kCount, kMean, kInvstd };
  std::string name() const override { return "MyOpsBatchnormGatherStatsBackward"; }

  variable_list apply(variable_list&& grads) override {
    const Tensor means = saved(kMeans);
    const Tensor mean = saved(kMean);
    const Tensor invstd = saved(kInvstd);
    const Counts count(saved(kCount), means);
    Tensor grad_means;
    Tensor grad_m2s;
    if (grads[0].defined()) grad_means = count.share() * grads[0];
    if (grads[1].defined()) {
      const Tensor slope = -grads[1] * invstd * invstd * invstd;
      grad_means = sum_of(grad_means, count.share() * (means - mean) * slope);
      grad_m2s = count.has_values() * slope / (2 * count.total);
    }
    return {if_wanted(0, grad_means, means.scalar_type()), if_wanted(1, grad_m2s, means.scalar_type())};
  }
};

/// mean' = sum(m_k*mean_k')/M        invstd' = -invstd^3 * sum(M2_k'/2 + m_k*(mean_k - mean)*mean_k')/M
void set_gather_stats_tangents(const Tensor& mean, const Tensor& m2, const Tensor& count, const Tensor& total_mean,
                               const Tensor& invstd) {
  if (!any_tangent(mean, m2)) return;
  const Tensor means = primal_of(mean);
  const Term dmeans = tangent_of(mean);
  const Counts counts(count, means);
  const auto sum_of_parts = [](const Term& t) { return t.is_zero() ? Term() : Term(t.tensor().sum(0)); };
  const Term weighted = counts.share() * dmeans;  // m_k*mean_k'/M
  const Term half_m2 = counts.has_values() / (2 * counts.total) * Term(tangent_of(m2));
  const Term half_var = sum_of_parts(half_m2 + weighted * (means - total_mean));
  set_tangent(total_mean, sum_of_parts(weighted));
  set_tangent(invstd, -(invstd * invstd * invstd) * half_var);
}

/// y = (x - mean) * invstd * gamma + beta, with sums over dy as in eval mode:
///   d/d mean = -gamma*invstd*sum_dy      d/d invstd = gamma * sum(dy*(x - mean))
class ApplyNode : public SavingNode<ApplyNode, 4> {
 public:
  enum Saved { kInput, kGamma, kMean, kInvstd };
  std::string name() const override { return "MyOpsBatchnormApplyBackward"; }

  variable_list apply(variable_list&& grads) override {
    variable_list out(5);
    if (!grads[0].defined()) return out;
    const Tensor input = saved(kInput);
    const OptionalTensor gamma = saved_optional(kGamma);
    const Tensor mean = saved(kMean);
    const Tensor invstd = saved(kInvstd);
    auto [dx, dgamma, dbeta] = ops::batchnorm_backward(grads[0], input, gamma_as_wide_as_beta(gamma, wants(2)), mean,
                                                       invstd, /*training=*/false, {wants(0), wants(1), wants(2)});
    out[0] = dx;
    out[1] = in_dtype_of(gamma, dgamma);
    out[2] = in_dtype(dbeta, constants.beta_dtype);
    if (wants(3) || wants(4)) {
      const Normalized in(grads[0], input, gamma, mean, invstd);
      out[3] = if_wanted(3, -in.scale() * channel_sum(in.dy), mean.scalar_type());
      out[4] = if_wanted(4, in.times_gamma(channel_sum(in.dy * in.centered)), mean.scalar_type());
    }
    return out;
  }
};

class BackwardReduceNode : public SavingNode<BackwardReduceNode, 4> {
 public:
  enum Saved { kGradOutput, kInput, kMean, kInvstd };
  std::string name() const override { return "MyOpsBatchnormBackwardReduceBackward"; }

  variable_list apply(variable_list&& grads) override {
    const Tensor grad_output = saved(kGradOutput);
    const Tensor input = saved(kInput);
    const Tensor mean = saved(kMean);
    const Normalized in(grad_output, input, std::nullopt, mean, saved(kInvstd));
    const auto through = backward_reduce_gradients(grads[0], grads[1], in);
    return {if_wanted(0, through.dy, grad_output.scalar_type()), if_wanted(1, through.x, input.scalar_type()),
            if_wanted(2, through.mean, mean.scalar_type()), if_wanted(3, through.invstd, mean.scalar_type())};
  }
};

class BackwardApplyNode : public SavingNode<BackwardApplyNode, 8> {
 public:
  enum Saved { kGradOutput, kInput, kGamma, kMean, kInvstd, kSumDy, kSumDyXhat, kCount };
  std::string name() const override { return "MyOpsBatchnormBackwardApplyBackward"; }

  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return variable_list(7);
    const Tensor grad_output = saved(kGradOutput);
    const Tensor input = saved(kInput);
    const OptionalTensor gamma = saved_optional(kGamma);
    const Tensor mean = saved(kMean);
    const Tensor count = saved(kCount);
    const Normalized in(grad_output, input, gamma, mean, saved(kInvstd));
    const auto through = backward_apply_gradients(grads[0], in, saved(kSumDy) / count, saved(kSumDyXhat) / count);
    const auto dtype = mean.scalar_type();
    return {if_wanted(0, through.dy, grad_output.scalar_type()),
            if_wanted(1, through.x, input.scalar_type()),
            if_wanted(2, through.gamma, gamma ? gamma->scalar_type() : dtype),
            if_wanted(3, through.mean, dtype),
            if_wanted(4, through.invstd, dtype),
            if_wanted(5, through.m1 / count, dtype),
            if_wanted(6, through.m2 / count, dtype)};
  }
};

std::tuple<Tensor, Tensor, Tensor> batchnorm_stats(const Tensor& input) {
  PointerTo<StatsNode> node;
  if (torch::autograd::compute_requires_grad(input)) {
    node = make_node<StatsNode>(input);
    node->save(StatsNode::kInput, input);
  }
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::batchnorm_stats(input);
  }();
  auto& [mean, m2, count] = result;
  if (node) torch::autograd::set_history({mean, m2}, node);
  set_stats_tangents(input, mean, m2);
  if (node) node->save(StatsNode::kMean, mean, /*is_output=*/true);
  return result;
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_gather_stats(const Tensor& mean, const Tensor& m2, const Tensor& count,
                                                          const OptionalTensor& running_mean,
                                                          const OptionalTensor& running_var,
                                                          std::optional<double> momentum, double eps,
                                                          const OptionalTensor& num_batches_tracked) {
  plan::check_running_statistics("batchnorm_gather_stats", running_mean, running_var, true, num_batches_tracked);
  PointerTo<GatherStatsNode> node;
  if (torch::autograd::compute_requires_grad(mean, m2)) {
    node = make_node<GatherStatsNode>(mean, m2);
    node->save(GatherStatsNode::kMeans, mean);
    node->save(GatherStatsNode::kCount, count);
  }
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::batchnorm_gather_stats(mean, m2, count, running_mean, running_var, momentum, eps, num_batches_tracked);
  }();
  for (const auto* written : {&running_mean, &running_var, &num_batches_tracked}) count_change(*written);
  auto& [total_mean, invstd, total_count] = result;
  if (node) torch::autograd::set_history({total_mean, invstd}, node);
  set_gather_stats_tangents(mean, m2, count, total_mean, invstd);
  if (node) {
    node->save(GatherStatsNode::kMean, total_mean, /*is_output=*/true);
    node->save(GatherStatsNode::kInvstd, invstd, /*is_output=*/true);
  }
  return result;
}

Tensor batchnorm_apply(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean,
                       const Tensor& invstd) {
  PointerTo<ApplyNode> node;
  if (torch::autograd::compute_requires_grad(input, gamma, beta, mean, invstd)) {
    node = make_node<ApplyNode>(input, gamma, beta, mean, invstd);
    node->save(ApplyNode::kInput, input);
    node->save(ApplyNode::kGamma, gamma);
    node->save(ApplyNode::kMean, mean);
    node->save(ApplyNode::kInvstd, invstd);
    if (beta) node->constants.beta_dtype = beta->scalar_type();
  }
  Tensor output = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::batchnorm_apply(input, gamma, beta, mean, invstd);
  }();
  if (node) torch::autograd::set_history(output, node);
  if (any_tangent(input, gamma, beta, mean, invstd)) {
    const Normalized in({}, primal_of(input), primal_of(gamma), primal_of(mean), primal_of(invstd));
    const Tangents t = tangents_of({}, input, gamma, mean, invstd);
    set_tangent(output, apply_tangent(in, t, in_dtype(tangent_of(beta), mean.scalar_type())));
  }
  return output;
}

std::tuple<Tensor, Tensor> batchnorm_backward_reduce(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                                     const Tensor& invstd) {
  PointerTo<BackwardReduceNode> node;
  if (torch::autograd::compute_requires_grad(grad_output, input, mean, invstd)) {
    node = make_node<BackwardReduceNode>(grad_output, input, mean, invstd);
    node->save(BackwardReduceNode::kGradOutput, grad_output);
    node->save(BackwardReduceNode::kInput, input);
    node->save(BackwardReduceNode::kMean, mean);
    node->save(BackwardReduceNode::kInvstd, invstd);
  }
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::batchnorm_backward_reduce(grad_output, input, mean, invstd);
  }();
  auto& [sum_dy, sum_dy_xhat] = result;
  if (node) torch::autograd::set_history({sum_dy, sum_dy_xhat}, node);
  if (any_tangent(grad_output, input, mean, invstd)) {
    const Normalized in(primal_of(grad_output), primal_of(input), std::nullopt, primal_of(mean), primal_of(invstd));
    const auto sums = backward_reduce_tangents(in, tangents_of(grad_output, input, std::nullopt, mean, invstd));
    set_tangent(sum_dy, sums.dy);
    set_tangent(sum_dy_xhat, sums.dy_xhat);
  }
  return result;
}

Tensor batchnorm_backward_apply(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                                const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                                const Tensor& sum_dy_xhat, const Tensor& count) {
  PointerTo<BackwardApplyNode> node;
  if (torch::autograd::compute_requires_grad(grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat)) {
    node = make_node<BackwardApplyNode>(grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat);
    const OptionalTensor saved[] = {grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat, count};
    for (size_t i = 0; i < std::size(saved); ++i) node->save(i, saved[i]);
  }
  Tensor grad_input = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::batchnorm_backward_apply(grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat, count);
  }();
  if (node) torch::autograd::set_history(grad_input, node);
  if (any_tangent(grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat)) {
    const Normalized in(primal_of(grad_output), primal_of(input), primal_of(gamma), primal_of(mean), primal_of(invstd));
    const Tangents t = tangents_of(grad_output, input, gamma, mean, invstd);
    const auto per_value = [&](const Term& sum) { return sum.is_zero() ? Term() : Term(sum.tensor() / count); };
    set_tangent(grad_input, backward_apply_tangent(in, t, primal_of(sum_dy) / count, primal_of(sum_dy_xhat) / count,
                                                   per_value(tangent_of(sum_dy)), per_value(tangent_of(sum_dy_xhat))));
  }
  return grad_input;
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, Autograd, m) {
  m.impl("batchnorm_stats", &batchnorm_stats);
  m.impl("batchnorm_gather_stats", &batchnorm_gather_stats);
  m.impl("batchnorm_apply", &batchnorm_apply);
  m.impl("batchnorm_backward_reduce", &batchnorm_backward_reduce);
  m.impl("batchnorm_backward_apply", &batchnorm_backward_apply);
}

}  // namespace my_ops::autograd
