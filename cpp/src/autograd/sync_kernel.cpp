// Derivatives of synchronized batch norm. They communicate too: every rank of the group has to take part in them.
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <optional>
#include <string>

#include "autograd/formulas.h"
#include "autograd/node.h"
#include "autograd/tangents.h"
#include "my_ops/ops.h"
#include "sync/collectives.h"

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

/// The sums of all ranks, [2*C] of [C] and [C]; the time between construction and total() is the messages'.
class SumOverRanks {
 public:
  SumOverRanks(const Tensor& first, const Tensor& second, const Group& group) : dtype_(first.scalar_type()) {
    const Tensor part = at::cat({first, second});
    if (c10::GradMode::is_enabled() || any_tangent(part)) {
      parts_ = ops::all_gather(part, group.size, group.name);  // with derivatives
    } else {
      pending_ = sync::start_all_gather(part, group);
    }
  }

  /// In float64 and in an order that depends on R alone, so that every rank has the same bits.
  std::tuple<Tensor, Tensor> total() {
    if (pending_) parts_ = pending_->wait();
    const Tensor sums = parts_.sum(/*dim=*/0, /*keepdim=*/false, at::kDouble).to(dtype_);
    const auto channels = sums.sym_size(0) / 2;
    return {sums.narrow_symint(0, 0, channels), sums.narrow_symint(0, channels, channels)};
  }

 private:
  at::ScalarType dtype_;
  std::optional<sync::Pending> pending_;
  Tensor parts_;
};

/// y = (x - mean) * invstd * gamma + beta, where mean and invstd are those of the batch of all ranks.
///
/// The gradient of x is the whole one, what flows through the statistics of all ranks included; so mean and invstd get
/// none from here. Gradients of gamma and beta are those of this rank's part of the batch.
class SyncApplyNode : public SavingNode<SyncApplyNode, 5> {
 public:
  enum Saved { kInput, kGamma, kMean, kInvstd, kCount };
  std::string name() const override { return "MyOpsSyncBatchnormApplyBackward"; }

  variable_list apply(variable_list&& grads) override {
    const Tensor input = saved(kInput);
    const OptionalTensor gamma = saved_optional(kGamma);
    const Tensor mean = saved(kMean);
    const Tensor invstd = saved(kInvstd);
    const Tensor dy = grads[0].defined() ? grads[0] : at::zeros_like(input);  // the other ranks wait for an answer
    const auto [sum_dy, sum_dy_xhat] = ops::batchnorm_backward_reduce(dy, input, mean, invstd);
    std::optional<SumOverRanks> sums;
    if (wants(0)) sums.emplace(sum_dy, sum_dy_xhat, constants.group);
    variable_list out(5);
    out[1] = if_wanted(1, sum_dy_xhat, gamma ? gamma->scalar_type() : mean.scalar_type());
    out[2] = if_wanted(2, sum_dy, constants.beta_dtype);
    if (sums) {
      const auto [total_dy, total_dy_xhat] = sums->total();
      out[0] = ops::batchnorm_backward_apply(dy, input, gamma, mean, invstd, total_dy, total_dy_xhat, saved(kCount));
    }
    return out;
  }
};

Tensor sync_batchnorm_apply(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                            const Tensor& mean, const Tensor& invstd, const Tensor& count, int64_t group_size,
                            std::string group_name) {
  Tensor output = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::batchnorm_apply(input, gamma, beta, mean, invstd);
  }();
  if (torch::autograd::compute_requires_grad(input, gamma, beta, mean, invstd)) {
    const auto node = make_node<SyncApplyNode>(input, gamma, beta, mean, invstd);
    const OptionalTensor saved[] = {input, gamma, mean, invstd, count};
    for (size_t i = 0; i < std::size(saved); ++i) node->save(i, saved[i]);
    if (beta) node->constants.beta_dtype = beta->scalar_type();
    node->constants.group = {group_size, group_name};
    torch::autograd::set_history(output, node);
  }
  if (any_tangent(input, gamma, beta, mean, invstd)) {
    const Normalized in({}, primal_of(input), primal_of(gamma), primal_of(mean), primal_of(invstd));
    const Tangents t = tangents_of({}, input, gamma, mean, invstd);
    set_tangent(output, apply_tangent(in, t, in_dtype(tangent_of(beta), mean.scalar_type())));
  }
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, Autograd, m) {
  m.impl("all_gather", &all_gather);
  m.impl("reduce_scatter", &reduce_scatter);
  m.impl("sync_batchnorm_apply", &sync_batchnorm_apply);
}

}  // namespace my_ops::autograd
