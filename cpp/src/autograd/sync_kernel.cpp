// Derivatives of synchronized batch norm. They communicate too: every rank of the group has to take part in them.
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <optional>
#include <string>

#include "autograd/formulas.h"
#include "autograd/node.h"
#include "autograd/tangents.h"
#include "my_ops/ops.h"
#include "plan/checks.h"
#include "sync/collectives.h"
#include "sync/phases.h"

namespace my_ops::autograd {
namespace {

using sync::Group;

/// Every rank reads what this one sends: its gradient is the sum over all ranks. Where no gradient comes, none comes on
/// any rank, and nothing is sent.
class AllGatherNode : public SavingNode<AllGatherNode, 0> {
 public:
  std::string name() const override { return "MyOpsAllGatherBackward"; }

  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return {Tensor()};
    return {ops::reduce_scatter(grads[0], constants.group.size, constants.group.name)};
  }
};

class ReduceScatterNode : public SavingNode<ReduceScatterNode, 0> {
 public:
  std::string name() const override { return "MyOpsReduceScatterBackward"; }

  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return {Tensor()};
    return {ops::all_gather(grads[0], constants.group.size, constants.group.name)};
  }
};

/// What happens below autograd: the collective itself, so that compilers record it; but inside a torch.func transform
/// the next level down, which has derivatives of its own.
bool in_transform() { return c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerBackMode); }

Tensor all_gather_below(const Tensor& part, const Group& group) {
  if (!in_transform()) return sync::start_all_gather(part, group).wait();
  const at::AutoDispatchBelowADInplaceOrView below;
  return ops::all_gather(part, group.size, group.name);
}

Tensor reduce_scatter_below(const Tensor& parts, const Group& group) {
  if (!in_transform()) return sync::start_reduce_scatter(parts, group).wait();
  const at::AutoDispatchBelowADInplaceOrView below;
  return ops::reduce_scatter(parts, group.size, group.name);
}

Tensor all_gather(const Tensor& part, int64_t group_size, std::string group_name) {
  const Group group{group_size, group_name};
  Tensor parts = all_gather_below(part, group);
  if (torch::autograd::compute_requires_grad(part)) {
    const auto node = make_node<AllGatherNode>(part);
    node->constants.group = group;
    torch::autograd::set_history(parts, node);
  }
  if (any_tangent(part)) set_tangent(parts, ops::all_gather(tangent_of(part), group_size, group_name));
  return parts;
}

Tensor reduce_scatter(const Tensor& parts, int64_t group_size, std::string group_name) {
  const Group group{group_size, group_name};
  Tensor sum = reduce_scatter_below(parts, group);
  if (torch::autograd::compute_requires_grad(parts)) {
    const auto node = make_node<ReduceScatterNode>(parts);
    node->constants.group = group;
    torch::autograd::set_history(sum, node);
  }
  if (any_tangent(parts)) set_tangent(sum, ops::reduce_scatter(tangent_of(parts), group_size, group_name));
  return sum;
}

/// output = act(z), z = batchnorm(input) + residual, where mean and invstd are those of the batch of all ranks; so the
/// gradient of input is the whole one, and mean and invstd get none from here.
class SyncApplyNode : public SavingNode<SyncApplyNode, 8> {
 public:
  enum Saved { kInput, kGamma, kBeta, kMean, kInvstd, kCount, kResidual, kMask };
  std::string name() const override { return "MyOpsSyncBatchnormApplyBackward"; }

  variable_list apply(variable_list&& grads) override {
    const Tensor input = in_layout_of_input(saved(kInput));
    const OptionalTensor gamma = saved_optional(kGamma);
    const OptionalTensor beta = saved_optional(kBeta);
    const OptionalTensor residual = saved_optional(kResidual);
    const Tensor mean = saved(kMean);
    const Tensor invstd = saved(kInvstd);
    const Tensor count = saved(kCount);
    const sync::Act act{plan::name_of(constants.activation), constants.slope};
    const Tensor dy = grads[0].defined() ? grads[0] : at::zeros_like(input);  // the other ranks wait for an answer
    const auto [dx, dresidual, dgamma, dbeta] =
        sync::Part{input, residual, gamma, beta, mean, invstd, count, act}.gradients(
            dy, saved_optional(kMask), constants.group, {wants(0), wants(5), wants(1), wants(2)}, constants.beta_dtype);
    return {dx, dgamma, dbeta, Tensor(), Tensor(), dresidual};
  }
};

/// z' of the arguments' tangents.
Term tangent_of_z(const Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma,
                  const OptionalTensor& beta, const Tensor& mean, const Tensor& invstd) {
  const Normalized in({}, primal_of(input), primal_of(gamma), primal_of(mean), primal_of(invstd));
  const Tangents t = tangents_of({}, input, gamma, mean, invstd);
  return apply_tangent(in, t, in_dtype(tangent_of(beta), mean.scalar_type())) +
         Term(in_dtype(tangent_of(residual), mean.scalar_type()));
}

Tensor sync_batchnorm_apply(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                            const Tensor& mean, const Tensor& invstd, const Tensor& count, int64_t group_size,
                            std::string group_name, const OptionalTensor& residual, std::string_view activation,
                            double slope) {
  const auto named = plan::activation_named("sync_batchnorm_apply", activation);
  const bool is_identity = named == plan::Activation::identity;
  auto [output, mask] = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return sync::Part{input, residual, gamma, beta, mean, invstd, count, {activation, slope}}.apply();
  }();
  if (torch::autograd::compute_requires_grad(input, gamma, beta, mean, invstd, residual)) {
    const auto node = make_node<SyncApplyNode>(input, gamma, beta, mean, invstd, residual);
    const bool from_z = !is_identity;
    const bool from_residual = from_z && !plan::needs_only_bit(named);
    const OptionalTensor none;
    const OptionalTensor saved[] = {
        input, gamma, from_z ? beta : none, mean, invstd, count, from_residual ? residual : none, mask};
    for (size_t i = 0; i < std::size(saved); ++i) node->save(i, saved[i]);
    if (beta) node->constants.beta_dtype = beta->scalar_type();
    node->constants.channels_last = !output.is_contiguous();
    node->constants.group = {group_size, group_name};
    node->constants.activation = named;
    node->constants.slope = slope;
    torch::autograd::set_history(output, node);
  }
  if (!any_tangent(input, gamma, beta, mean, invstd, residual)) return output;
  const Term z = tangent_of_z(input, residual, gamma, beta, mean, invstd);
  if (is_identity || z.is_zero()) {
    set_tangent(output, z);
    return output;
  }
  // output' = act'(z)*z' is what the backward pass makes of z' as a gradient, on its way to the residual.
  const Tensor as_gradient = in_dtype(z.tensor(), input.scalar_type()).expand_symint(input.sym_sizes());
  const auto backward = ops::batchnorm_act_backward(
      as_gradient, primal_of(input), primal_of(residual), mask, primal_of(gamma), primal_of(beta), primal_of(mean),
      primal_of(invstd), /*training=*/false, activation, slope, {false, true, false, false});
  set_tangent(output, std::get<1>(backward));
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, Autograd, m) {
  m.impl("all_gather", &all_gather);
  m.impl("reduce_scatter", &reduce_scatter);
  m.impl("sync_batchnorm_apply", &sync_batchnorm_apply);
}

}  // namespace my_ops::autograd
