// Derivatives of in-place batch normalization with an activation, whose gradient starts from the output. It is the
// first derivative alone: what lies beyond would need the input, which was overwritten.
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "autograd/node.h"
#include "autograd/tangents.h"
#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/invertible.h"
#include "sync/phases.h"

namespace my_ops::autograd {
namespace {

using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr const char* kOnlyFirst =
    ": only the first derivative, in reverse mode, is known in place: use "
    "batchnorm_act_forward for others";

/// batchnorm_act_forward_ as a function of (input, gamma, beta).
class InPlaceNode : public SavingNode<InPlaceNode, 7> {
 public:
  enum Saved { kOutput, kKept, kKeptInput, kGamma, kBeta, kMean, kInvstd };

  std::string name() const override { return "MyOpsBatchnormActForward_Backward"; }

  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return variable_list(3);
    const OptionalTensor gamma = saved_optional(kGamma);
    auto [dx, dgamma, dbeta] = ops::batchnorm_act_backward_from_output(
        grads[0], saved(kOutput), saved(kKept), saved(kKeptInput), gamma_as_wide_as_beta(gamma, wants(2)),
        saved_optional(kBeta), saved(kMean), saved(kInvstd), constants.training, plan::name_of(constants.activation),
        constants.slope, {wants(0), wants(1), wants(2)});
    return {dx, in_dtype_of(gamma, dgamma), in_dtype(dbeta, constants.beta_dtype)};
  }
};

/// What stands behind the gradients, so that no derivative of theirs is silently zero.
class NoDerivativeNode : public SavingNode<NoDerivativeNode, 0> {
 public:
  std::string name() const override { return "MyOpsBatchnormActNoSecondDerivative"; }

  variable_list apply(variable_list&&) override {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "batchnorm_act_backward_from_output", kOnlyFirst);
  }
};

Four batchnorm_act_forward_(Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                            const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                            std::optional<double> momentum, double eps, std::string_view activation, double slope,
                            const OptionalTensor& num_batches_tracked) {
  const char* op = "batchnorm_act_forward_";
  const auto named = plan::activation_named(op, activation);
  plan::check_running_statistics(op, running_mean, running_var, training, num_batches_tracked);
  TORCH_CHECK_NOT_IMPLEMENTED(!any_tangent(input, gamma, beta), op, kOnlyFirst);
  const bool requires_grad = torch::autograd::compute_requires_grad(input, gamma, beta);
  torch::autograd::check_inplace(input, requires_grad);
  plan::check_written(op, "input", input);
  PointerTo<InPlaceNode> node;
  if (requires_grad) {
    node = make_node<InPlaceNode>(input, gamma, beta);
    node->constants.training = training;
    node->constants.activation = named;
    node->constants.slope = slope;
    node->save(InPlaceNode::kGamma, gamma);
    node->save(InPlaceNode::kBeta, beta);
    if (beta) node->constants.beta_dtype = beta->scalar_type();
  }
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::batchnorm_act_forward_(input, gamma, beta, running_mean, running_var, training, momentum, eps,
                                       activation, slope, num_batches_tracked);
  }();
  torch::autograd::increment_version(input);
  if (training) {
    for (const auto* written : {&running_mean, &running_var, &num_batches_tracked}) count_change(*written);
  }
  if (node) {
    const auto& [mean, invstd, kept, kept_input] = result;
    torch::autograd::rebase_history(input, node);
    node->save(InPlaceNode::kOutput, input, /*is_output=*/true);
    node->save(InPlaceNode::kMean, mean);
    node->save(InPlaceNode::kInvstd, invstd);
    node->save(InPlaceNode::kKept, kept);
    node->save(InPlaceNode::kKeptInput, kept_input);
  }
  return result;
}

Three batchnorm_act_backward_from_output(const Tensor& grad_output, const Tensor& output, const Tensor& kept,
                                         const Tensor& kept_input, const OptionalTensor& gamma,
                                         const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd,
                                         bool training, std::string_view activation, double slope,
                                         ops::OutputMask output_mask) {
  TORCH_CHECK_NOT_IMPLEMENTED(!any_tangent(grad_output, output, gamma, beta, save_mean, save_invstd),
                              "batchnorm_act_backward_from_output", kOnlyFirst);
  PointerTo<NoDerivativeNode> node;
  if (torch::autograd::compute_requires_grad(grad_output, output, gamma, beta, save_mean, save_invstd)) {
    node = make_node<NoDerivativeNode>(grad_output, output, gamma, beta, save_mean, save_invstd);
  }
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::batchnorm_act_backward_from_output(grad_output, output, kept, kept_input, gamma, beta, save_mean,
                                                   save_invstd, training, activation, slope, output_mask);
  }();
  if (node) {
    auto& [grad_input, grad_gamma, grad_beta] = result;
    torch::autograd::set_history({grad_input, grad_gamma, grad_beta}, node);
  }
  return result;
}

/// The phases are made for the operators here, which know their derivatives.
template <class... Tensors>
void refuse_derivatives(const char* op, const Tensors&... tensors) {
  TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::compute_requires_grad(tensors...) && !any_tangent(tensors...), op,
                              ": expected no argument that requires grad or has a tangent: use batchnorm_act_apply");
}

std::tuple<Tensor, Tensor> batchnorm_act_apply_(Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                                                const Tensor& mean, const Tensor& invstd, std::string_view activation,
                                                double slope) {
  refuse_derivatives("batchnorm_act_apply_", input, gamma, beta, mean, invstd);
  plan::check_written("batchnorm_act_apply_", "input", input);
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::batchnorm_act_apply_(input, gamma, beta, mean, invstd, activation, slope);
  }();
  torch::autograd::increment_version(input);
  return result;
}

Tensor batchnorm_act_recover(const Tensor& output, const Tensor& kept, const Tensor& kept_input,
                             const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean,
                             const Tensor& invstd, std::string_view activation, double slope) {
  refuse_derivatives("batchnorm_act_recover", output, gamma, beta, mean, invstd);
  const at::AutoDispatchBelowADInplaceOrView below;
  return ops::batchnorm_act_recover(output, kept, kept_input, gamma, beta, mean, invstd, activation, slope);
}

/// sync_batchnorm_act_forward_ as a function of (input, gamma, beta): synchronized batch norm's gradients of dz, over
/// input - mean, whose mean is 0.
class SyncInPlaceNode : public SavingNode<SyncInPlaceNode, 8> {
 public:
  enum Saved { kOutput, kKept, kKeptInput, kGamma, kBeta, kMean, kInvstd, kCount };

  std::string name() const override { return "MyOpsSyncBatchnormActForward_Backward"; }

  variable_list apply(variable_list&& grads) override {
    const Tensor output = saved(kOutput);
    const OptionalTensor gamma = saved_optional(kGamma);
    const OptionalTensor beta = saved_optional(kBeta);
    const Tensor dy = grads[0].defined() ? grads[0] : at::zeros_like(output);  // the other ranks wait for an answer
    PointerTo<NoDerivativeNode> node;
    if (torch::autograd::compute_requires_grad(dy, output, gamma, beta)) {
      node = make_node<NoDerivativeNode>(dy, output, gamma, beta);
    }
    variable_list out = gradients(dy, output, gamma, beta);
    if (node) torch::autograd::set_history(out, node);
    return out;
  }

 private:
  variable_list gradients(const Tensor& dy, const Tensor& output, const OptionalTensor& gamma,
                          const OptionalTensor& beta) {
    const at::AutoDispatchBelowADInplaceOrView below;
    const Tensor mean = saved(kMean);
    const Tensor invstd = saved(kInvstd);
    const Tensor count = saved(kCount);
    const auto named = constants.activation;
    const Tensor centered = ops::batchnorm_act_recover(output, saved(kKept), saved(kKeptInput), gamma, beta, mean,
                                                       invstd, plan::name_of(named), constants.slope);
    const Tensor dz = plan::gradient_from_output(dy, output, named, constants.slope);
    const auto [dx, dresidual, dgamma, dbeta] =
        sync::Part{centered, std::nullopt, gamma, beta, at::zeros_like(mean), invstd, count, {}}.gradients(
            dz, std::nullopt, constants.group, {wants(0), false, wants(1), wants(2)}, constants.beta_dtype);
    return {dx, dgamma, dbeta};
  }
};

Five sync_batchnorm_act_forward_(Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                                 const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                 std::optional<double> momentum, double eps, std::string_view activation, double slope,
                                 const OptionalTensor& num_batches_tracked, int64_t group_size,
                                 std::string group_name) {
  const char* op = "sync_batchnorm_act_forward_";
  const auto named = plan::activation_named(op, activation);
  plan::check_running_statistics(op, running_mean, running_var, true, num_batches_tracked);
  TORCH_CHECK_NOT_IMPLEMENTED(!any_tangent(input, gamma, beta), op, kOnlyFirst);
  const bool requires_grad = torch::autograd::compute_requires_grad(input, gamma, beta);
  torch::autograd::check_inplace(input, requires_grad);
  plan::check_written(op, "input", input);
  PointerTo<SyncInPlaceNode> node;
  if (requires_grad) node = make_node<SyncInPlaceNode>(input, gamma, beta);
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::sync_batchnorm_act_forward_(input, gamma, beta, running_mean, running_var, momentum, eps, activation,
                                            slope, num_batches_tracked, group_size, group_name);
  }();
  torch::autograd::increment_version(input);
  for (const auto* written : {&running_mean, &running_var, &num_batches_tracked}) count_change(*written);
  if (node) {
    const auto& [mean, invstd, count, kept, kept_input] = result;
    torch::autograd::rebase_history(input, node);
    node->save(SyncInPlaceNode::kOutput, input, /*is_output=*/true);
    const OptionalTensor saved[] = {kept, kept_input, gamma, beta, mean, invstd, count};
    for (size_t i = 0; i < std::size(saved); ++i) node->save(SyncInPlaceNode::kKept + i, saved[i]);
    node->constants.activation = named;
    node->constants.slope = slope;
    node->constants.group = {group_size, group_name};
    if (beta) node->constants.beta_dtype = beta->scalar_type();
  }
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, Autograd, m) {
  m.impl("batchnorm_act_apply_", &batchnorm_act_apply_);
  m.impl("batchnorm_act_recover", &batchnorm_act_recover);
  m.impl("sync_batchnorm_act_forward_", &sync_batchnorm_act_forward_);
  m.impl("batchnorm_act_forward_", &batchnorm_act_forward_);
  m.impl("batchnorm_act_backward_from_output", &batchnorm_act_backward_from_output);
}

}  // namespace my_ops::autograd
