// Derivatives of the phase operators.
#include <torch/library.h>

#include "autograd/formulas.h"
#include "autograd/node.h"
#include "ops.h"
#include "plan/checks.h"
#include "plan/problem.h"

namespace my_ops::autograd {
namespace {

/// (mean, M2) of input:  d mean / dx = 1/M      d M2 / dx = 2 * (x - mean)
class StatsNode : public SavingNode<2> {
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

/// (mean, invstd) of R parts with m_k values each, M = sum m_k, var = sum(M2_k + m_k*(mean_k - mean)^2) / M:
///   d mean / d mean_k = m_k/M        d invstd / d M2_k = -invstd^3 / (2M)
///   d invstd / d mean_k = -invstd^3 * m_k * (mean_k - mean) / M
class GatherStatsNode : public SavingNode<4> {
 public:
  enum Saved { kMeans, kCount, kMean, kInvstd };
  std::string name() const override { return "MyOpsBatchnormGatherStatsBackward"; }

  variable_list apply(variable_list&& grads) override {
    const Tensor means = saved(kMeans);
    const Tensor mean = saved(kMean);
    const Tensor invstd = saved(kInvstd);
    const Tensor count = saved(kCount).to(means.scalar_type()).unsqueeze(1);
    const Tensor total = count.sum().clamp_min(1);
    const Tensor share = count / total;  // m_k/M: [R, 1]
    Tensor grad_means;
    Tensor grad_m2s;
    if (grads[0].defined()) grad_means = share * grads[0];
    if (grads[1].defined()) {
      const Tensor slope = -grads[1] * invstd * invstd * invstd;
      const Tensor through_means = share * (means - mean) * slope;
      grad_means = sum_of(grad_means, through_means);
      grad_m2s = count.sign() * slope / (2 * total);  // M2 of an empty part is not read
    }
    return {if_wanted(0, grad_means, means.scalar_type()), if_wanted(1, grad_m2s, means.scalar_type())};
  }
};

/// y = (x - mean) * invstd * gamma + beta, with sums over dy as in eval mode:
///   d/d mean = -gamma*invstd*sum_dy      d/d invstd = gamma * sum(dy*(x - mean))
class ApplyNode : public SavingNode<4> {
 public:
  enum Saved { kInput, kGamma, kMean, kInvstd };
  at::ScalarType beta_dtype = at::kFloat;
  std::string name() const override { return "MyOpsBatchnormApplyBackward"; }

  variable_list apply(variable_list&& grads) override {
    variable_list out(5);
    if (!grads[0].defined()) return out;
    const Tensor input = saved(kInput);
    const OptionalTensor gamma = saved_optional(kGamma);
    const Tensor mean = saved(kMean);
    const Tensor invstd = saved(kInvstd);
    auto [dx, dgamma, dbeta] = ops::batchnorm_backward(grads[0], input, gamma, mean, invstd, /*training=*/false,
                                                       {wants(0), wants(1), wants(2)});
    out[0] = dx;
    out[1] = dgamma;
    out[2] = in_dtype(dbeta, beta_dtype);
    if (wants(3) || wants(4)) {
      const Normalized in(grads[0], input, gamma, mean, invstd);
      out[3] = if_wanted(3, -in.scale() * channel_sum(in.dy), mean.scalar_type());
      out[4] = if_wanted(4, in.times_gamma(channel_sum(in.dy * in.centered)), mean.scalar_type());
    }
    return out;
  }
};

class BackwardReduceNode : public SavingNode<4> {
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

class BackwardApplyNode : public SavingNode<8> {
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
  refuse_tangents("batchnorm_stats", input);
  PointerTo<StatsNode> node;
  if (torch::autograd::compute_requires_grad(input)) {
    node = make_node<StatsNode>(input);
    node->save(StatsNode::kInput, input);
  }
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::batchnorm_stats(input);
  }();
  if (node) {
    auto& [mean, m2, count] = result;
    torch::autograd::set_history({mean, m2}, node);
    node->save(StatsNode::kMean, mean, /*is_output=*/true);
  }
  return result;
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_gather_stats(const Tensor& mean, const Tensor& m2, const Tensor& count,
                                                          const OptionalTensor& running_mean,
                                                          const OptionalTensor& running_var,
                                                          std::optional<double> momentum, double eps,
                                                          const OptionalTensor& num_batches_tracked) {
  refuse_tangents("batchnorm_gather_stats", mean, m2, running_mean, running_var);
  if (at::GradMode::is_enabled()) {
    plan::check_not_differentiable("batchnorm_gather_stats", running_mean, running_var);
  }
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
  if (node) {
    auto& [total_mean, invstd, total_count] = result;
    torch::autograd::set_history({total_mean, invstd}, node);
    node->save(GatherStatsNode::kMean, total_mean, /*is_output=*/true);
    node->save(GatherStatsNode::kInvstd, invstd, /*is_output=*/true);
  }
  return result;
}

Tensor batchnorm_apply(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean,
                       const Tensor& invstd) {
  refuse_tangents("batchnorm_apply", input, gamma, beta, mean, invstd);
  PointerTo<ApplyNode> node;
  if (torch::autograd::compute_requires_grad(input, gamma, beta, mean, invstd)) {
    node = make_node<ApplyNode>(input, gamma, beta, mean, invstd);
    node->save(ApplyNode::kInput, input);
    node->save(ApplyNode::kGamma, gamma);
    node->save(ApplyNode::kMean, mean);
    node->save(ApplyNode::kInvstd, invstd);
    if (beta) node->beta_dtype = beta->scalar_type();
  }
  Tensor output = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::batchnorm_apply(input, gamma, beta, mean, invstd);
  }();
  if (node) torch::autograd::set_history(output, node);
  return output;
}

std::tuple<Tensor, Tensor> batchnorm_backward_reduce(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                                     const Tensor& invstd) {
  refuse_tangents("batchnorm_backward_reduce", grad_output, input, mean, invstd);
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
  if (node) torch::autograd::set_history({std::get<0>(result), std::get<1>(result)}, node);
  return result;
}

Tensor batchnorm_backward_apply(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                                const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                                const Tensor& sum_dy_xhat, const Tensor& count) {
  refuse_tangents("batchnorm_backward_apply", grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat);
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
