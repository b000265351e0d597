// Derivatives of convolution and batch norm as one operator.
//
// Whatever is not a plain gradient (a tangent, a derivative of the gradient) goes through the two operators one after
// the other, which know their derivatives of any order.
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "autograd/activations.h"
#include "autograd/formulas.h"
#include "autograd/node.h"
#include "autograd/tangents.h"
#include "composite/conv.h"
#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/convolution.h"
#include "sync/conv.h"

namespace my_ops::autograd {
namespace {

using at::IntArrayRef;
using ops::ConvOutputMask;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

/// conv_batchnorm_forward as a function of (input, weight, bias, gamma, beta).
class ConvForwardNode : public SavingNode<ConvForwardNode, 7> {
 public:
  enum Saved { kInput, kWeight, kBias, kGamma, kBeta, kMean, kInvstd };

  std::string name() const override { return "MyOpsConvBatchnormForwardBackward"; }

  variable_list apply(variable_list&& grads) override {
    const Tensor input = saved(kInput);
    const Tensor weight = saved(kWeight);
    const OptionalTensor bias = saved_optional(kBias);
    const Tensor mean = saved(kMean);
    const Tensor invstd = saved(kInvstd);
    const auto& conv = constants.convolution;
    variable_list out(5);
    if (grads[0].defined()) {
      const OptionalTensor gamma = saved_optional(kGamma);
      auto [dx, dw, db, dgamma, dbeta] = ops::conv_batchnorm_backward(
          grads[0], input, weight, bias, gamma_as_wide_as_beta(gamma, wants(4)), saved_optional(kBeta), mean, invstd,
          conv.stride, conv.padding, conv.dilation, conv.groups, constants.training,
          plan::name_of(constants.activation), constants.slope, {wants(0), wants(1), wants(2), wants(3), wants(4)});
      out = {dx, dw, db, in_dtype_of(gamma, dgamma), in_dtype(dbeta, constants.beta_dtype)};
    }
    const bool of_statistics = grads.size() > 1 && (grads[1].defined() || grads[2].defined());
    if (of_statistics && (wants(0) || wants(1) || wants(2))) {
      const Tensor z = conv.run(input, weight, bias);
      const Tensor dz = through_statistics(grads[1], grads[2], z, mean, invstd);
      auto [dx, dw, db] = conv.gradients(dz, input, weight, {wants(0), wants(1), wants(2)});
      out[0] = sum_of(out[0], dx);
      out[1] = sum_of(out[1], dw);
      out[2] = sum_of(out[2], db);
    }
    return out;
  }
};

std::tuple<Tensor, Tensor, Tensor> conv_batchnorm_forward(
    const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& gamma,
    const OptionalTensor& beta, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups, bool training,
    std::optional<double> momentum, double eps, const OptionalTensor& num_batches_tracked, std::string_view activation,
    double slope) {
  plan::check_running_statistics("conv_batchnorm_forward", running_mean, running_var, training, num_batches_tracked);
  const plan::Convolution convolution{stride.vec(), padding.vec(), dilation.vec(), groups};
  if (any_tangent(input, weight, bias, gamma, beta)) {
    plan::check_convolution("conv_batchnorm_forward", input, weight, bias, convolution);
    const composite::Norm norm{gamma, beta, training, activation, slope};
    return norm.forward(convolution.run(input, weight, bias), running_mean, running_var, momentum, eps,
                        num_batches_tracked);
  }
  PointerTo<ConvForwardNode> node;
  if (torch::autograd::compute_requires_grad(input, weight, bias, gamma, beta)) {
    node = make_node<ConvForwardNode>(input, weight, bias, gamma, beta);
    node->constants.training = training;
    node->constants.convolution = convolution;
    node->constants.activation = plan::activation_named("conv_batchnorm_forward", activation);
    node->constants.slope = slope;
    node->save(ConvForwardNode::kInput, input);
    node->save(ConvForwardNode::kWeight, weight);
    node->save(ConvForwardNode::kBias, bias);
    node->save(ConvForwardNode::kGamma, gamma);
    if (activation != composite::kNoActivation) node->save(ConvForwardNode::kBeta, beta);
    if (beta) node->constants.beta_dtype = beta->scalar_type();
  }
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::conv_batchnorm_forward(input, weight, bias, gamma, beta, running_mean, running_var, stride, padding,
                                       dilation, groups, training, momentum, eps, num_batches_tracked, activation,
                                       slope);
  }();
  auto& [output, mean, invstd] = result;
  if (training) {
    for (const auto* written : {&running_mean, &running_var, &num_batches_tracked}) count_change(*written);
  }
  if (node) {
    torch::autograd::set_history(output, node);
    if (training) torch::autograd::set_history({mean, invstd}, node);
    node->save(ConvForwardNode::kMean, mean, /*is_output=*/true);
    node->save(ConvForwardNode::kInvstd, invstd, /*is_output=*/true);
  }
  return result;
}

Five conv_batchnorm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                             const OptionalTensor& bias, const OptionalTensor& gamma, const OptionalTensor& beta,
                             const Tensor& save_mean, const Tensor& save_invstd, IntArrayRef stride,
                             IntArrayRef padding, IntArrayRef dilation, int64_t groups, bool training,
                             std::string_view activation, double slope, ConvOutputMask output_mask) {
  if (!torch::autograd::compute_requires_grad(grad_output, input, weight, bias, gamma, beta, save_mean, save_invstd) &&
      !any_tangent(grad_output, input, weight, bias, gamma, beta, save_mean, save_invstd)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::conv_batchnorm_backward(grad_output, input, weight, bias, gamma, beta, save_mean, save_invstd, stride,
                                        padding, dilation, groups, training, activation, slope, output_mask);
  }
  const plan::Convolution convolution{stride.vec(), padding.vec(), dilation.vec(), groups};
  plan::check_convolution("conv_batchnorm_backward", input, weight, bias, convolution);
  const auto [wants_input, wants_weight, wants_bias, wants_gamma, wants_beta] = output_mask;
  const bool wants_z = wants_input || wants_weight || wants_bias;
  const Tensor z = convolution.run(input, weight, bias);
  const composite::Norm norm{gamma, beta, training, activation, slope};
  auto [dz, dgamma, dbeta] = norm.backward(grad_output, z, save_mean, save_invstd, {wants_z, wants_gamma, wants_beta});
  Tensor dx;
  Tensor dw;
  Tensor db;
  if (wants_z) std::tie(dx, dw, db) = convolution.gradients(dz, input, weight, {wants_input, wants_weight, wants_bias});
  return {dx, dw, db, dgamma, dbeta};
}

/// sync_conv_batchnorm_forward as a function of (input, weight, bias, gamma, beta).
class SyncConvForwardNode : public SavingNode<SyncConvForwardNode, 8> {
 public:
  enum Saved { kInput, kWeight, kBias, kGamma, kBeta, kMean, kInvstd, kCount };

  std::string name() const override { return "MyOpsSyncConvBatchnormForwardBackward"; }

  variable_list apply(variable_list&& grads) override {
    const Tensor input = saved(kInput);
    const Tensor weight = saved(kWeight);
    const OptionalTensor bias = saved_optional(kBias);
    const Tensor mean = saved(kMean);
    const Tensor invstd = saved(kInvstd);
    const Tensor count = saved(kCount);
    const auto& conv = constants.convolution;
    // Undefined or not, the other ranks wait for an answer.
    const Tensor dy = grads[0].defined() ? grads[0] : at::zeros_like(conv.run(input, weight, bias));
    const OptionalTensor gamma = saved_optional(kGamma);
    auto [dx, dw, db, dgamma, dbeta] = ops::sync_conv_batchnorm_backward(
        dy, input, weight, bias, gamma_as_wide_as_beta(gamma, wants(4)), saved_optional(kBeta), mean, invstd, count,
        conv.stride, conv.padding, conv.dilation, conv.groups, plan::name_of(constants.activation), constants.slope,
        constants.group.size, constants.group.name, {wants(0), wants(1), wants(2), wants(3), wants(4)});
    dgamma = in_dtype_of(gamma, dgamma);
    if ((grads[1].defined() || grads[2].defined()) && (wants(0) || wants(1) || wants(2))) {
      const Tensor z = sync::run(conv, input, weight, bias);
      const Tensor dz = through_all_statistics(grads[1], grads[2], z, mean, invstd, count);
      auto [dx_, dw_, db_] = sync::gradients(conv, dz, input, weight, {wants(0), wants(1), wants(2)});
      return {sum_of(dx, dx_), sum_of(dw, dw_), sum_of(db, db_), dgamma, in_dtype(dbeta, constants.beta_dtype)};
    }
    return {dx, dw, db, dgamma, in_dtype(dbeta, constants.beta_dtype)};
  }

 private:
  /// through_statistics of the mean and invstd of `count` values, of which z has M; every rank has a gradient of its
  /// own for them, which add up.
  Tensor through_all_statistics(const Tensor& grad_mean, const Tensor& grad_invstd, const Tensor& z, const Tensor& mean,
                                const Tensor& invstd, const Tensor& count) const {
    const auto or_zeros = [&](const Tensor& gradient) { return gradient.defined() ? gradient : at::zeros_like(mean); };
    const sync::SumOverRanks sums(or_zeros(grad_mean), or_zeros(grad_invstd), constants.group);
    const auto [of_mean, of_invstd] = sums.total();
    const Tensor share = c10::Scalar(values_per_channel(z)) / count.to(mean.scalar_type());
    return through_statistics(of_mean * share, of_invstd * share, z, mean, invstd);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> sync_conv_batchnorm_forward(
    const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& gamma,
    const OptionalTensor& beta, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups, std::optional<double> momentum,
    double eps, const OptionalTensor& num_batches_tracked, std::string_view activation, double slope,
    int64_t group_size, std::string group_name) {
  const char* op = "sync_conv_batchnorm_forward";
  plan::check_running_statistics(op, running_mean, running_var, true, num_batches_tracked);
  const auto named = plan::activation_named(op, activation);
  const plan::Convolution convolution{stride.vec(), padding.vec(), dilation.vec(), groups};
  const sync::Group group{group_size, group_name};
  if (any_tangent(input, weight, bias, gamma, beta)) {
    plan::check_convolution(op, input, weight, bias, convolution);
    const Tensor z = sync::run(convolution, input, weight, bias);
    auto [mean, invstd, count] =
        sync::statistics(z, running_mean, running_var, momentum, eps, num_batches_tracked, group);
    return {ops::sync_batchnorm_apply(z, gamma, beta, mean, invstd, count, group_size, group_name, std::nullopt,
                                      activation, slope),
            mean, invstd, count};
  }
  PointerTo<SyncConvForwardNode> node;
  if (torch::autograd::compute_requires_grad(input, weight, bias, gamma, beta)) {
    node = make_node<SyncConvForwardNode>(input, weight, bias, gamma, beta);
    const bool needs_beta = named != plan::Activation::identity;
    const OptionalTensor saved[] = {input, weight, bias, gamma, needs_beta ? beta : std::nullopt};
    for (size_t i = 0; i < std::size(saved); ++i) node->save(i, saved[i]);
    if (beta) node->constants.beta_dtype = beta->scalar_type();
    node->constants.convolution = convolution;
    node->constants.activation = named;
    node->constants.slope = slope;
    node->constants.group = group;
  }
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::sync_conv_batchnorm_forward(input, weight, bias, gamma, beta, running_mean, running_var, stride,
                                            padding, dilation, groups, momentum, eps, num_batches_tracked, activation,
                                            slope, group_size, group_name);
  }();
  auto& [output, mean, invstd, count] = result;
  for (const auto* written : {&running_mean, &running_var, &num_batches_tracked}) count_change(*written);
  if (node) {
    torch::autograd::set_history({output, mean, invstd}, node);
    node->save(SyncConvForwardNode::kMean, mean, /*is_output=*/true);
    node->save(SyncConvForwardNode::kInvstd, invstd, /*is_output=*/true);
    node->save(SyncConvForwardNode::kCount, count);
  }
  return result;
}

Five sync_conv_batchnorm_backward(const Tensor& grad_output, const Tensor& input, const Tensor& weight,
                                  const OptionalTensor& bias, const OptionalTensor& gamma, const OptionalTensor& beta,
                                  const Tensor& mean, const Tensor& invstd, const Tensor& count, IntArrayRef stride,
                                  IntArrayRef padding, IntArrayRef dilation, int64_t groups,
                                  std::string_view activation, double slope, int64_t group_size, std::string group_name,
                                  ConvOutputMask output_mask) {
  if (!torch::autograd::compute_requires_grad(grad_output, input, weight, bias, gamma, beta, mean, invstd) &&
      !any_tangent(grad_output, input, weight, bias, gamma, beta, mean, invstd)) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return ops::sync_conv_batchnorm_backward(grad_output, input, weight, bias, gamma, beta, mean, invstd, count, stride,
                                             padding, dilation, groups, activation, slope, group_size, group_name,
                                             output_mask);
  }
  const plan::Convolution convolution{stride.vec(), padding.vec(), dilation.vec(), groups};
  plan::check_convolution("sync_conv_batchnorm_backward", input, weight, bias, convolution);
  return sync::conv_gradients(grad_output, input, weight, bias, gamma, beta, mean, invstd, count, convolution,
                              {activation, slope}, {group_size, group_name}, output_mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, Autograd, m) {
  m.impl("sync_conv_batchnorm_forward", &sync_conv_batchnorm_forward);
  m.impl("sync_conv_batchnorm_backward", &sync_conv_batchnorm_backward);
  m.impl("conv_batchnorm_forward", &conv_batchnorm_forward);
  m.impl("conv_batchnorm_backward", &conv_batchnorm_backward);
}

}  // namespace my_ops::autograd
