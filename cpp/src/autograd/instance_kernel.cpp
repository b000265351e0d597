// Derivatives of instance norm: those of batch norm, with statistics [N, C] of S values each.
#include <torch/library.h>

#include "autograd/formulas.h"
#include "autograd/node.h"
#include "autograd/tangents.h"
#include "my_ops/ops.h"
#include "plan/checks.h"

namespace my_ops::autograd {
namespace {

using ops::OutputMask;

/// instancenorm_forward as a function of (input, gamma, beta); the saved statistics are functions of the input.
class InstanceForwardNode : public SavingNode<InstanceForwardNode, 4> {
 public:
  enum Saved { kInput, kGamma, kMean, kInvstd };

  std::string name() const override { return "MyOpsInstancenormForwardBackward"; }

  variable_list apply(variable_list&& grads) override {
    const Tensor input = saved(kInput);
    const Tensor mean = saved(kMean);
    const Tensor invstd = saved(kInvstd);
    variable_list out(3);
    if (grads[0].defined()) {
      const OptionalTensor gamma = saved_optional(kGamma);
      auto [dx, dgamma, dbeta] = ops::instancenorm_backward(grads[0], input, gamma_as_wide_as_beta(gamma, wants(2)),
                                                            mean, invstd, {wants(0), wants(1), wants(2)});
      out[0] = dx;
      out[1] = in_dtype_of(gamma, dgamma);
      out[2] = in_dtype(dbeta, constants.beta_dtype);
    }
    if (wants(0)) out[0] = sum_of(out[0], through_statistics(grads[1], grads[2], input, mean, invstd));
    return out;
  }
};

/// instancenorm_backward as a function of (grad_output, input, gamma, save_mean, save_invstd).
///
/// dx = gamma*r*(dy - m1 - xhat*m2) with m1 = sum_dy/S, m2 = sum_dy_xhat/S for every image and channel; dgamma and
/// dbeta are these sums, added up over the images: so the gradient of each goes to every image alike.
class InstanceBackwardNode : public SavingNode<InstanceBackwardNode, 5> {
 public:
  enum Saved { kGradOutput, kInput, kGamma, kMean, kInvstd };

  std::string name() const override { return "MyOpsInstancenormBackwardBackward"; }

  variable_list apply(variable_list&& grads) override {
    const Tensor grad_output = saved(kGradOutput);
    const Tensor input = saved(kInput);
    const OptionalTensor gamma = saved_optional(kGamma);
    const Tensor mean = saved(kMean);
    const Normalized in(grad_output, input, gamma, mean, saved(kInvstd));
    BackwardApplyGradients through_dx;
    Tensor grad_sum_dy = grads[2];
    Tensor grad_sum_dy_xhat = grads[1];
    if (grads[0].defined()) {
      const c10::Scalar count(values_per(mean, input));
      through_dx = backward_apply_gradients(grads[0], in, in.sum_dy() / count, in.sum_dy_xhat() / count);
      grad_sum_dy = sum_of(through_dx.m1 / count, grad_sum_dy);
      grad_sum_dy_xhat = sum_of(through_dx.m2 / count, grad_sum_dy_xhat);
    }
    BackwardReduceGradients through_sums;
    if (grad_sum_dy.defined() || grad_sum_dy_xhat.defined()) {
      through_sums = backward_reduce_gradients(grad_sum_dy, grad_sum_dy_xhat, in);
    }
    const Tensor grad_gamma = through_dx.gamma.defined() ? through_dx.gamma.sum(0) : Tensor();
    const auto gamma_dtype = gamma ? gamma->scalar_type() : mean.scalar_type();
    return {if_wanted(0, sum_of(through_dx.dy, through_sums.dy), grad_output.scalar_type()),
            if_wanted(1, sum_of(through_dx.x, through_sums.x), input.scalar_type()),
            if_wanted(2, grad_gamma, gamma_dtype),
            if_wanted(3, sum_of(through_dx.mean, through_sums.mean), mean.scalar_type()),
            if_wanted(4, sum_of(through_dx.invstd, through_sums.invstd), mean.scalar_type())};
  }
};

using Three = std::tuple<Tensor, Tensor, Tensor>;

/// y' = instancenorm_backward(x') + gamma'*xhat + beta', as dy/dx is symmetric.
///   mean' = sum(x')/S        invstd' = -invstd^2 * sum(x'*xhat)/S
void set_forward_tangents(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                          const Three& result) {
  if (!any_tangent(input, gamma, beta)) return;
  const auto& [output, mean, invstd] = result;
  const Tensor x = primal_of(input);
  const auto dtype = mean.scalar_type();
  const Normalized in({}, x, std::nullopt, mean, invstd);
  Term output_tangent = per_channel(Term(in_dtype(tangent_of(beta), dtype)), x);
  if (const Tensor gamma_tangent = tangent_of(gamma); gamma_tangent.defined()) {
    output_tangent = output_tangent + per_channel(in_dtype(gamma_tangent, dtype), x) * in.xhat();
  }
  if (const Tensor x_tangent = tangent_of(input); x_tangent.defined()) {
    output_tangent = output_tangent + std::get<0>(ops::instancenorm_backward(x_tangent, x, primal_of(gamma), mean,
                                                                             invstd, {true, false, false}));
    const c10::Scalar count(values_per(mean, x));
    const Tensor wide = in_dtype(x_tangent, dtype);
    set_tangent(mean, in.sum(wide) / count);
    set_tangent(invstd, -invstd * invstd * in.sum(wide * in.xhat()) / count);
  }
  set_tangent(output, output_tangent);
}

void set_backward_tangents(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                           const Tensor& mean, const Tensor& invstd, const Three& result) {
  if (!any_tangent(grad_output, input, gamma, mean, invstd)) return;
  const auto& [grad_input, grad_gamma, grad_beta] = result;
  const Normalized in(primal_of(grad_output), primal_of(input), primal_of(gamma), primal_of(mean), primal_of(invstd));
  const Tangents t = tangents_of(grad_output, input, gamma, mean, invstd);
  const SumTangents sums = backward_reduce_tangents(in, t);
  if (grad_input.defined()) {
    const c10::Scalar count(values_per(mean, input));
    set_tangent(grad_input, backward_apply_tangent(in, t, in.sum_dy() / count, in.sum_dy_xhat() / count,
                                                   sums.dy / count, sums.dy_xhat / count));
  }
  const auto over_images = [](const Term& sum) { return sum.is_zero() ? Term() : Term(sum.tensor().sum(0)); };
  set_tangent(grad_gamma, over_images(sums.dy_xhat));
  set_tangent(grad_beta, over_images(sums.dy));
}

std::tuple<Tensor, Tensor, Tensor> instancenorm_forward(const Tensor& input, const OptionalTensor& gamma,
                                                        const OptionalTensor& beta, const OptionalTensor& running_mean,
                                                        const OptionalTensor& running_var, double momentum,
                                                        double eps) {
  plan::check_running_statistics("instancenorm_forward", running_mean, running_var, true, std::nullopt);
  PointerTo<InstanceForwardNode> node;
  if (torch::autograd::compute_requires_grad(input, gamma, beta)) {
    node = make_node<InstanceForwardNode>(input, gamma, beta);
    node->save(InstanceForwardNode::kInput, input);
    node->save(InstanceForwardNode::kGamma, gamma);
    if (beta) node->constants.beta_dtype = beta->scalar_type();
  }
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::instancenorm_forward(input, gamma, beta, running_mean, running_var, momentum, eps);
  }();
  for (const auto* written : {&running_mean, &running_var}) count_change(*written);
  auto& [output, mean, invstd] = result;
  if (node) torch::autograd::set_history({output, mean, invstd}, node);
  set_forward_tangents(input, gamma, beta, result);
  if (node) {  // with history and tangents
    node->save(InstanceForwardNode::kMean, mean, /*is_output=*/true);
    node->save(InstanceForwardNode::kInvstd, invstd, /*is_output=*/true);
  }
  return result;
}

std::tuple<Tensor, Tensor, Tensor> instancenorm_backward(const Tensor& grad_output, const Tensor& input,
                                                         const OptionalTensor& gamma, const Tensor& save_mean,
                                                         const Tensor& save_invstd, OutputMask output_mask) {
  PointerTo<InstanceBackwardNode> node;
  if (torch::autograd::compute_requires_grad(grad_output, input, gamma, save_mean, save_invstd)) {
    node = make_node<InstanceBackwardNode>(grad_output, input, gamma, save_mean, save_invstd);
    const OptionalTensor saved[] = {grad_output, input, gamma, save_mean, save_invstd};
    for (size_t i = 0; i < std::size(saved); ++i) node->save(i, saved[i]);
  }
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::instancenorm_backward(grad_output, input, gamma, save_mean, save_invstd, output_mask);
  }();
  if (node) {
    auto& [grad_input, grad_gamma, grad_beta] = result;
    torch::autograd::set_history({grad_input, grad_gamma, grad_beta}, node);
  }
  set_backward_tangents(grad_output, input, gamma, save_mean, save_invstd, result);
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, Autograd, m) {
  m.impl("instancenorm_forward", &instancenorm_forward);
  m.impl("instancenorm_backward", &instancenorm_backward);
}

}  // namespace my_ops::autograd
