// Derivatives of the operators with an activation. The first gradients are operators too; what lies beyond them - their
// own derivatives, in both modes - is that of the same formulas written down in differentiable operations: right, not
// fast.
#include <torch/library.h>

#include "autograd/activations.h"
#include "autograd/formulas.h"
#include "autograd/forward_formulas.h"
#include "autograd/node.h"
#include "autograd/tangents.h"
#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/problem.h"

namespace my_ops::autograd {
namespace {

using plan::Activation;
using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

/// The arguments of a backward operator, from which all of them start.
struct ActArguments {
  const Tensor& grad_output;
  const Tensor& input;
  const OptionalTensor& residual;
  const OptionalTensor& mask;
  const OptionalTensor& gamma;
  const OptionalTensor& beta;
  const Tensor& mean;
  const Tensor& invstd;
  Activation activation;
  double slope;

  template <class... More>
  bool differentiable(const More&... more) const {
    return torch::autograd::compute_requires_grad(grad_output, input, residual, gamma, beta, mean, invstd, more...) ||
           any_tangent(grad_output, input, residual, gamma, beta, mean, invstd, more...);
  }
};

/// The same in the accumulation dtype, and dz = dy * act'(z), as differentiable functions of the arguments.
struct Unfused {
  Tensor x;
  OptionalTensor gamma;
  Tensor dz;

  explicit Unfused(const ActArguments& a) {
    const auto dtype = a.mean.scalar_type();
    const auto wide = [dtype](const OptionalTensor& tensor) {
      return tensor ? OptionalTensor(in_dtype(*tensor, dtype)) : std::nullopt;
    };
    x = in_dtype(a.input, dtype);
    gamma = wide(a.gamma);
    const Tensor dy = in_dtype(a.grad_output, dtype);
    if (a.mask && a.mask->sym_numel() != 0 && plan::needs_only_bit(a.activation)) {
      dz = masked_backward(dy, *a.mask, a.input, a.activation, a.slope);
      return;
    }
    Tensor z = ops::batchnorm_apply(x, gamma, wide(a.beta), a.mean, a.invstd);
    if (a.residual) z = z + *wide(a.residual);
    dz = activation_backward(dy, z, a.activation, a.slope);
  }
};

/// batchnorm_act_forward as a function of (input, residual, gamma, beta).
class ActForwardNode : public SavingNode<ActForwardNode, 7> {
 public:
  enum Saved { kInput, kResidual, kMask, kGamma, kBeta, kMean, kInvstd };

  std::string name() const override { return "MyOpsBatchnormActForwardBackward"; }

  variable_list apply(variable_list&& grads) override {
    const Tensor input = in_layout_of_input(saved(kInput));
    const Tensor mean = saved(kMean);
    const Tensor invstd = saved(kInvstd);
    variable_list out(4);
    if (grads[0].defined()) {
      const OptionalTensor residual = saved_optional(kResidual);
      const OptionalTensor mask = saved_optional(kMask);
      const OptionalTensor gamma = saved_optional(kGamma);
      const OptionalTensor beta = saved_optional(kBeta);
      const std::array<bool, 4> wanted{wants(0), wants(1), wants(2), wants(3)};
      const OptionalTensor wide = gamma_as_wide_as_beta(gamma, wanted[3]);
      const auto backward = [&](auto op) {
        return op(grads[0], input, residual, mask, wide, beta, mean, invstd, constants.training,
                  plan::name_of(constants.activation), constants.slope, wanted);
      };
      if ((wanted[0] || wanted[1]) && may_overwrite(grads[0], input) &&
          !any_tangent(grads[0], input, residual, gamma, beta, mean, invstd)) {
        std::tie(out[0], out[2], out[3]) = backward(ops::batchnorm_act_backward_);
        out[wanted[1] ? 1 : 0] = grads[0];
      } else {
        std::tie(out[0], out[1], out[2], out[3]) = backward(ops::batchnorm_act_backward);
      }
      out[2] = in_dtype_of(gamma, out[2]);
      out[3] = in_dtype(out[3], constants.beta_dtype);
    }
    if (grads.size() > 2 && wants(0)) {
      out[0] = sum_of(out[0], through_statistics(grads[1], grads[2], input, mean, invstd));
    }
    return out;
  }
};

/// batchnorm_act_apply as a function of (input, residual, gamma, beta, mean, invstd). In eval mode
/// batchnorm_act_backward gives all but the last two, which follow from its sums: with z = gamma*xhat + beta,
///   d/d mean = -gamma*invstd*sum_dz        d/d invstd = gamma*sum_dz_xhat/invstd
class ActApplyNode : public SavingNode<ActApplyNode, 7> {
 public:
  enum Saved { kInput, kResidual, kMask, kGamma, kBeta, kMean, kInvstd };

  std::string name() const override { return "MyOpsBatchnormActApplyBackward"; }

  variable_list apply(variable_list&& grads) override {
    variable_list out(6);
    if (!grads[0].defined()) return out;
    const OptionalTensor gamma = saved_optional(kGamma);
    const Tensor mean = saved(kMean);
    const Tensor invstd = saved(kInvstd);
    const bool statistics = wants(4) || wants(5);
    OptionalTensor wide_gamma = gamma;  // the sums have its dtype
    if (wide_gamma) wide_gamma = in_dtype(*wide_gamma, mean.scalar_type());
    auto [dx, dresidual, sum_xhat, sum] = ops::batchnorm_act_backward(
        grads[0], in_layout_of_input(saved(kInput)), saved_optional(kResidual), saved_optional(kMask), wide_gamma,
        saved_optional(kBeta), mean, invstd, /*training=*/false, plan::name_of(constants.activation), constants.slope,
        {wants(0), wants(1), wants(2) || statistics, wants(3) || statistics});
    out[0] = dx;
    out[1] = dresidual;
    if (gamma) out[2] = if_wanted(2, sum_xhat, gamma->scalar_type());
    out[3] = if_wanted(3, sum, constants.beta_dtype);
    const auto times_gamma = [&](const Tensor& vector) { return wide_gamma ? *wide_gamma * vector : vector; };
    if (wants(4)) out[4] = -times_gamma(invstd * sum);
    if (wants(5)) out[5] = times_gamma(sum_xhat / invstd);
    return out;
  }
};

/// What both nodes save of the arguments.
template <class N>
void save_arguments(N& node, const Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma,
                    const OptionalTensor& beta, Activation activation, double slope) {
  node.constants.activation = activation;
  node.constants.slope = slope;
  node.save(N::kInput, input);
  if (!plan::needs_only_bit(activation) && activation != Activation::identity) node.save(N::kResidual, residual);
  node.save(N::kGamma, gamma);
  node.save(N::kBeta, beta);
  if (beta) node.constants.beta_dtype = beta->scalar_type();
}

/// output' = act'(z)*z' from z'. z is computed again, as it is in a backward pass.
void set_output_tangent(const Tensor& output, const Term& z_tangent, const Tensor& input,
                        const OptionalTensor& residual, const OptionalTensor& gamma, const OptionalTensor& beta,
                        const Tensor& mean, const Tensor& invstd, Activation activation, double slope) {
  if (z_tangent.is_zero()) return;
  const Tensor x = primal_of(input);
  const Tensor wide = in_dtype(z_tangent.tensor(), mean.scalar_type()).expand_symint(x.sym_sizes());
  const OptionalTensor mask;
  set_tangent(output, Unfused({wide, x, primal_of(residual), mask, primal_of(gamma), primal_of(beta), mean, invstd,
                               activation, slope})
                          .dz);
}

Four batchnorm_act_forward(const Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma,
                           const OptionalTensor& beta, const OptionalTensor& running_mean,
                           const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
                           std::string_view activation, double slope, const OptionalTensor& num_batches_tracked) {
  const char* op = "batchnorm_act_forward";
  const auto named = plan::activation_named(op, activation);
  plan::check_running_statistics(op, running_mean, running_var, training, num_batches_tracked);
  PointerTo<ActForwardNode> node;
  if (torch::autograd::compute_requires_grad(input, residual, gamma, beta)) {
    node = make_node<ActForwardNode>(input, residual, gamma, beta);
    save_arguments(*node, input, residual, gamma, beta, named, slope);
    node->constants.training = training;
  }
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::batchnorm_act_forward(input, residual, gamma, beta, running_mean, running_var, training, momentum, eps,
                                      activation, slope, num_batches_tracked);
  }();
  auto& [output, mean, invstd, mask] = result;
  if (training) {
    for (const auto* written : {&running_mean, &running_var, &num_batches_tracked}) count_change(*written);
  }
  if (node) {
    torch::autograd::set_history(output, node);
    if (training) torch::autograd::set_history({mean, invstd}, node);
  }
  if (any_tangent(input, residual, gamma, beta)) {
    const auto t = forward_tangents(input, gamma, beta, training, mean, invstd);
    set_output_tangent(output, t.output + Term(tangent_of(residual)), input, residual, gamma, beta, mean, invstd, named,
                       slope);
    set_tangent(mean, t.mean);
    set_tangent(invstd, t.invstd);
  }
  if (node) {  // with history and tangents
    node->constants.channels_last = !output.is_contiguous();
    node->save(ActForwardNode::kMask, mask);
    node->save(ActForwardNode::kMean, mean, /*is_output=*/true);
    node->save(ActForwardNode::kInvstd, invstd, /*is_output=*/true);
  }
  return result;
}

Four batchnorm_act_backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual,
                            const OptionalTensor& mask, const OptionalTensor& gamma, const OptionalTensor& beta,
                            const Tensor& save_mean, const Tensor& save_invstd, bool training,
                            std::string_view activation, double slope, std::array<bool, 4> output_mask) {
  const auto named = plan::activation_named("batchnorm_act_backward", activation);
  const ActArguments arguments{grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd, named, slope};
  if (arguments.differentiable()) {
    plan::check_act_backward(grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd, named);
    const Unfused in(arguments);
    auto [dx, dgamma, dbeta] = ops::batchnorm_backward(in.dz, in.x, in.gamma, save_mean, save_invstd, training,
                                                       {output_mask[0], output_mask[2], output_mask[3]});
    const auto dtype = gamma ? gamma->scalar_type() : save_mean.scalar_type();
    return {in_dtype(dx, input.scalar_type()), output_mask[1] ? in_dtype(in.dz, input.scalar_type()) : Tensor(),
            in_dtype(dgamma, dtype), in_dtype(dbeta, dtype)};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return ops::batchnorm_act_backward(grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd, training,
                                     activation, slope, output_mask);
}

Three batchnorm_act_backward_(Tensor& grad_output, const Tensor& input, const OptionalTensor& residual,
                              const OptionalTensor& mask, const OptionalTensor& gamma, const OptionalTensor& beta,
                              const Tensor& save_mean, const Tensor& save_invstd, bool training,
                              std::string_view activation, double slope, std::array<bool, 4> output_mask) {
  const char* op = "batchnorm_act_backward_";
  const auto named = plan::activation_named(op, activation);
  const ActArguments arguments{grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd, named, slope};
  TORCH_CHECK_NOT_IMPLEMENTED(!arguments.differentiable(), op,
                              ": expected arguments without derivatives: use batchnorm_act_backward for others");
  plan::check_written(op, "grad_output", grad_output);
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::batchnorm_act_backward_(grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd,
                                        training, activation, slope, output_mask);
  }();
  torch::autograd::increment_version(grad_output);
  return result;
}

Two batchnorm_act_apply(const Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma,
                        const OptionalTensor& beta, const Tensor& mean, const Tensor& invstd,
                        std::string_view activation, double slope) {
  const auto named = plan::activation_named("batchnorm_act_apply", activation);
  PointerTo<ActApplyNode> node;
  if (torch::autograd::compute_requires_grad(input, residual, gamma, beta, mean, invstd)) {
    node = make_node<ActApplyNode>(input, residual, gamma, beta, mean, invstd);
    save_arguments(*node, input, residual, gamma, beta, named, slope);
    node->save(ActApplyNode::kMean, mean);
    node->save(ActApplyNode::kInvstd, invstd);
  }
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::batchnorm_act_apply(input, residual, gamma, beta, mean, invstd, activation, slope);
  }();
  auto& [output, mask] = result;
  if (node) {
    torch::autograd::set_history(output, node);
    node->constants.channels_last = !output.is_contiguous();
    node->save(ActApplyNode::kMask, mask);
  }
  if (any_tangent(input, residual, gamma, beta, mean, invstd)) {
    const Tensor mu = primal_of(mean);
    const Tensor r = primal_of(invstd);
    const Normalized in({}, primal_of(input), primal_of(gamma), mu, r);
    const Tangents t = tangents_of({}, input, gamma, mean, invstd);
    const Term z = apply_tangent(in, t, in_dtype(tangent_of(beta), mean.scalar_type()));
    set_output_tangent(output, z + Term(in_dtype(tangent_of(residual), mean.scalar_type())), input, residual, gamma,
                       beta, mu, r, named, slope);
  }
  return result;
}

Two batchnorm_act_backward_reduce(const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual,
                                  const OptionalTensor& mask, const OptionalTensor& gamma, const OptionalTensor& beta,
                                  const Tensor& mean, const Tensor& invstd, std::string_view activation, double slope) {
  const auto named = plan::activation_named("batchnorm_act_backward_reduce", activation);
  const ActArguments arguments{grad_output, input, residual, mask, gamma, beta, mean, invstd, named, slope};
  if (arguments.differentiable()) {
    plan::check_act_backward_reduce(grad_output, input, residual, mask, gamma, beta, mean, invstd, named);
    const Unfused in(arguments);
    return ops::batchnorm_backward_reduce(in.dz, in.x, mean, invstd);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return ops::batchnorm_act_backward_reduce(grad_output, input, residual, mask, gamma, beta, mean, invstd, activation,
                                            slope);
}

Two batchnorm_act_backward_apply(const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual,
                                 const OptionalTensor& mask, const OptionalTensor& gamma, const OptionalTensor& beta,
                                 const Tensor& mean, const Tensor& invstd, std::string_view activation, double slope,
                                 const Tensor& sum_dy, const Tensor& sum_dy_xhat, const Tensor& count) {
  const auto named = plan::activation_named("batchnorm_act_backward_apply", activation);
  const ActArguments arguments{grad_output, input, residual, mask, gamma, beta, mean, invstd, named, slope};
  if (arguments.differentiable(sum_dy, sum_dy_xhat)) {
    plan::check_act_backward_apply(grad_output, input, residual, mask, gamma, beta, mean, invstd, named, sum_dy,
                                   sum_dy_xhat, count);
    const Unfused in(arguments);
    const Tensor dx = ops::batchnorm_backward_apply(in.dz, in.x, in.gamma, mean, invstd, sum_dy, sum_dy_xhat, count);
    return {in_dtype(dx, input.scalar_type()), in_dtype(in.dz, input.scalar_type())};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return ops::batchnorm_act_backward_apply(grad_output, input, residual, mask, gamma, beta, mean, invstd, activation,
                                           slope, sum_dy, sum_dy_xhat, count);
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, Autograd, m) {
  m.impl("batchnorm_act_forward", &batchnorm_act_forward);
  m.impl("batchnorm_act_backward", &batchnorm_act_backward);
  m.impl("batchnorm_act_backward_", &batchnorm_act_backward_);
  m.impl("batchnorm_act_apply", &batchnorm_act_apply);
  m.impl("batchnorm_act_backward_reduce", &batchnorm_act_backward_reduce);
  m.impl("batchnorm_act_backward_apply", &batchnorm_act_backward_apply);
}

}  // namespace my_ops::autograd
