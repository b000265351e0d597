// Derivatives of the whole operators.
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "autograd/formulas.h"
#include "autograd/forward_formulas.h"
#include "autograd/node.h"
#include "autograd/tangents.h"
#include "my_ops/ops.h"
#include "plan/checks.h"

namespace my_ops::autograd {
namespace {

using ops::OutputMask;

/// batchnorm_forward as a function of (input, gamma, beta).
///
/// output's gradient goes through batchnorm_backward. In training the saved statistics are functions of the input too.
/// In eval with a constant gamma, dx = gamma*invstd*dy: the input is not saved, and dy takes its place.
class ForwardNode : public SavingNode<ForwardNode, 4> {
 public:
  enum Saved { kInput, kGamma, kMean, kInvstd };

  std::string name() const override { return "MyOpsBatchnormForwardBackward"; }

  variable_list apply(variable_list&& grads) override {
    const Tensor input = saved(kInput);
    const OptionalTensor gamma = saved_optional(kGamma);
    const Tensor mean = saved(kMean);
    const Tensor invstd = saved(kInvstd);
    variable_list out(3);
    if (grads[0].defined()) {
      const OutputMask wanted{wants(0), wants(1), wants(2)};
      const OptionalTensor wide = gamma_as_wide_as_beta(gamma, wanted[2]);
      if (!input.defined()) grads[0] = in_layout_of_input(grads[0]);
      const bool overwrite = wanted[0] && may_overwrite(grads[0], input.defined() ? input : grads[0]) &&
                             !any_tangent(grads[0], input, gamma, mean, invstd);
      const Tensor x = input.defined() ? input : grads[0];
      if (overwrite) {
        const auto dtype = wide ? wide->scalar_type() : mean.scalar_type();
        for (const int i : {1, 2}) {
          if (wanted[i]) out[i] = at::empty_like(mean, mean.options().dtype(dtype));
        }
        out[0] = grads[0];
        ops::batchnorm_backward_out(grads[0], x, wide, mean, invstd, constants.training, wanted, out[0], out[1],
                                    out[2]);
      } else {
        std::tie(out[0], out[1], out[2]) =
            ops::batchnorm_backward(grads[0], x, wide, mean, invstd, constants.training, wanted);
      }
      out[1] = in_dtype_of(gamma, out[1]);
      out[2] = in_dtype(out[2], constants.beta_dtype);
    }
    if (grads.size() > 1 && wants(0)) {
      out[0] = sum_of(out[0], through_statistics(grads[1], grads[2], input, mean, invstd));
    }
    return out;
  }
};

/// batchnorm_backward as a function of (grad_output, input, gamma, save_mean, save_invstd).
///
/// dx = gamma*r*(dy - m1 - xhat*m2) with m1 = sum_dy/M, m2 = sum_dy_xhat/M (0 in eval), dgamma = sum_dy_xhat,
/// dbeta = sum_dy: the derivative of dx with respect to the sums joins the gradients of dgamma and dbeta.
class BackwardNode : public SavingNode<BackwardNode, 5> {
 public:
  enum Saved { kGradOutput, kInput, kGamma, kMean, kInvstd };

  std::string name() const override { return "MyOpsBatchnormBackwardBackward"; }

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
      Tensor m1;
      Tensor m2;
      const c10::Scalar count(values_per_channel(input));
      if (constants.training) {
        m1 = in.sum_dy() / count;
        m2 = in.sum_dy_xhat() / count;
      }
      through_dx = backward_apply_gradients(grads[0], in, m1, m2);
      if (constants.training) {
        grad_sum_dy = sum_of(through_dx.m1 / count, grad_sum_dy);
        grad_sum_dy_xhat = sum_of(through_dx.m2 / count, grad_sum_dy_xhat);
      }
    }
    BackwardReduceGradients through_sums;
    if (grad_sum_dy.defined() || grad_sum_dy_xhat.defined()) {
      through_sums = backward_reduce_gradients(grad_sum_dy, grad_sum_dy_xhat, in);
    }
    const auto gamma_dtype = gamma ? gamma->scalar_type() : mean.scalar_type();
    return {if_wanted(0, sum_of(through_dx.dy, through_sums.dy), grad_output.scalar_type()),
            if_wanted(1, sum_of(through_dx.x, through_sums.x), input.scalar_type()),
            if_wanted(2, through_dx.gamma, gamma_dtype),
            if_wanted(3, sum_of(through_dx.mean, through_sums.mean), mean.scalar_type()),
            if_wanted(4, sum_of(through_dx.invstd, through_sums.invstd), mean.scalar_type())};
  }
};

using Three = std::tuple<Tensor, Tensor, Tensor>;

/// The sums are those of dx = gamma*r*(dy - m1 - xhat*m2) and results themselves.
void set_backward_tangents(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                           const Tensor& mean, const Tensor& invstd, bool training, const Three& result) {
  if (!any_tangent(grad_output, input, gamma, mean, invstd)) return;
  const auto& [grad_input, grad_gamma, grad_beta] = result;
  const Normalized in(primal_of(grad_output), primal_of(input), primal_of(gamma), primal_of(mean), primal_of(invstd));
  const Tangents t = tangents_of(grad_output, input, gamma, mean, invstd);
  SumTangents sums;
  if (training || grad_gamma.defined() || grad_beta.defined()) sums = backward_reduce_tangents(in, t);
  Term dx;
  if (grad_input.defined() && training) {
    const c10::Scalar count(values_per_channel(in.dy));
    dx = backward_apply_tangent(in, t, in.sum_dy() / count, in.sum_dy_xhat() / count, sums.dy / count,
                                sums.dy_xhat / count);
  } else if (grad_input.defined()) {
    dx = backward_apply_tangent(in, t, {}, {}, {}, {});
  }
  set_tangent(grad_input, dx);
  set_tangent(grad_gamma, sums.dy_xhat);
  set_tangent(grad_beta, sums.dy);
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_forward(const Tensor& input, const OptionalTensor& gamma,
                                                     const OptionalTensor& beta, const OptionalTensor& running_mean,
                                                     const OptionalTensor& running_var, bool training,
                                                     std::optional<double> momentum, double eps,
                                                     const OptionalTensor& num_batches_tracked) {
  plan::check_running_statistics("batchnorm_forward", running_mean, running_var, training, num_batches_tracked);
  PointerTo<ForwardNode> node;
  if (torch::autograd::compute_requires_grad(input, gamma, beta)) {
    node = make_node<ForwardNode>(input, gamma, beta);
    node->constants.training = training;
    if (training || torch::autograd::compute_requires_grad(gamma)) node->save(ForwardNode::kInput, input);
    node->save(ForwardNode::kGamma, gamma);
    if (beta) node->constants.beta_dtype = beta->scalar_type();
  }
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::batchnorm_forward(input, gamma, beta, running_mean, running_var, training, momentum, eps,
                                  num_batches_tracked);
  }();
  auto& [output, mean, invstd] = result;
  if (training) {
    for (const auto* written : {&running_mean, &running_var, &num_batches_tracked}) count_change(*written);
  }
  if (node) {
    torch::autograd::set_history(output, node);
    if (training) torch::autograd::set_history({mean, invstd}, node);
    node->constants.channels_last = !output.is_contiguous();
  }
  if (any_tangent(input, gamma, beta)) {
    const auto t = forward_tangents(input, gamma, beta, training, mean, invstd);
    set_tangent(output, t.output);
    set_tangent(mean, t.mean);
    set_tangent(invstd, t.invstd);
  }
  if (node) {  // with history and tangents
    node->save(ForwardNode::kMean, mean, /*is_output=*/true);
    node->save(ForwardNode::kInvstd, invstd, /*is_output=*/true);
  }
  return result;
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_backward(const Tensor& grad_output, const Tensor& input,
                                                      const OptionalTensor& gamma, const Tensor& save_mean,
                                                      const Tensor& save_invstd, bool training,
                                                      OutputMask output_mask) {
  PointerTo<BackwardNode> node;
  if (torch::autograd::compute_requires_grad(grad_output, input, gamma, save_mean, save_invstd)) {
    node = make_node<BackwardNode>(grad_output, input, gamma, save_mean, save_invstd);
    node->constants.training = training;
    node->save(BackwardNode::kGradOutput, grad_output);
    node->save(BackwardNode::kInput, input);
    node->save(BackwardNode::kGamma, gamma);
    node->save(BackwardNode::kMean, save_mean);
    node->save(BackwardNode::kInvstd, save_invstd);
  }
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::batchnorm_backward(grad_output, input, gamma, save_mean, save_invstd, training, output_mask);
  }();
  if (node) {
    auto& [grad_input, grad_gamma, grad_beta] = result;
    torch::autograd::set_history({grad_input, grad_gamma, grad_beta}, node);
  }
  set_backward_tangents(grad_output, input, gamma, save_mean, save_invstd, training, result);
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, Autograd, m) {
  m.impl("batchnorm_forward", &batchnorm_forward);
  m.impl("batchnorm_backward", &batchnorm_backward);
}

}  // namespace my_ops::autograd
