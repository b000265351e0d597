// Convolution and synchronized batch norm as one operator, which keeps nothing between the two.
#include <ATen/TensorOperators.h>
#include <c10/core/GradMode.h>
#include <torch/library.h>

#include "my_ops/ops.h"
#include "plan/checks.h"
#include "sync/conv.h"

namespace my_ops::sync {

using at::IntArrayRef;
using at::Tensor;

namespace {

bool is_cut(const Tensor& z) { return c10::GradMode::is_enabled() && z.sym_numel() == 0; }

/// 0, as a function of `tensor` that has derivatives of any order.
Tensor zero_of(const Tensor& tensor) { return tensor.narrow(0, 0, 0).sum(); }

}  // namespace

Tensor run(const plan::Convolution& convolution, const Tensor& input, const Tensor& weight,
           const OptionalTensor& bias) {
  const Tensor z = convolution.run(input, weight, bias);
  return is_cut(z) ? z + zero_of(input) + zero_of(weight) : z;
}

std::tuple<Tensor, Tensor, Tensor> gradients(const plan::Convolution& convolution, const Tensor& dz,
                                             const Tensor& input, const Tensor& weight, std::array<bool, 3> wanted) {
  auto [dx, dw, db] = convolution.gradients(dz, input, weight, wanted);
  if (is_cut(dz)) {
    for (Tensor* gradient : {&dx, &dw, &db}) {
      if (gradient->defined()) *gradient = *gradient + zero_of(dz);
    }
  }
  return {dx, dw, db};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_gradients(const Tensor& grad_output, const Tensor& input,
                                                                  const Tensor& weight, const OptionalTensor& bias,
                                                                  const OptionalTensor& gamma,
                                                                  const OptionalTensor& beta, const Tensor& mean,
                                                                  const Tensor& invstd, const Tensor& count,
                                                                  const plan::Convolution& convolution, const Act& act,
                                                                  const Group& group, ops::ConvOutputMask wanted) {
  const auto [wants_input, wants_weight, wants_bias, wants_gamma, wants_beta] = wanted;
  const bool wants_z = wants_input || wants_weight || wants_bias;
  const Tensor z = run(convolution, input, weight, bias);
  const auto dtype = gamma ? gamma->scalar_type() : mean.scalar_type();
  auto [dz, dresidual, dgamma, dbeta] = Part{z, std::nullopt, gamma, beta, mean, invstd, count, act}.gradients(
      grad_output, std::nullopt, group, {wants_z, false, wants_gamma, wants_beta}, dtype);
  Tensor dx;
  Tensor dw;
  Tensor db;
  if (wants_z)
    std::tie(dx, dw, db) = gradients(convolution, dz, input, weight, {wants_input, wants_weight, wants_bias});
  return {dx, dw, db, dgamma, dbeta};
}

namespace {

/// Without an activation the output takes the memory of the convolution's.
std::tuple<Tensor, Tensor, Tensor, Tensor> sync_conv_batchnorm_forward(
    const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& gamma,
    const OptionalTensor& beta, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups, std::optional<double> momentum,
    double eps, const OptionalTensor& num_batches_tracked, std::string_view activation, double slope,
    int64_t group_size, std::string group_name) {
  const char* op = "sync_conv_batchnorm_forward";
  plan::activation_named(op, activation);
  const plan::Convolution convolution{stride.vec(), padding.vec(), dilation.vec(), groups};
  plan::check_convolution(op, input, weight, bias, convolution);
  Tensor z = convolution.run(input, weight, bias);
  plan::check_sync_forward(op, z, std::nullopt, gamma, beta, running_mean, running_var, momentum, eps,
                           num_batches_tracked, group_size);
  auto [mean, invstd, count] =
      statistics(z, running_mean, running_var, momentum, eps, num_batches_tracked, {group_size, group_name});
  const Act act{activation, slope};
  if (act.is_identity()) {
    ops::batchnorm_apply_out(z, gamma, beta, mean, invstd, z);
    return {z, mean, invstd, count};
  }
  auto [output, mask] = Part{z, std::nullopt, gamma, beta, mean, invstd, count, act}.apply();
  return {output, mean, invstd, count};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sync_conv_batchnorm_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean, const Tensor& invstd,
    const Tensor& count, IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups,
    std::string_view activation, double slope, int64_t group_size, std::string group_name,
    ops::ConvOutputMask output_mask) {
  const char* op = "sync_conv_batchnorm_backward";
  plan::activation_named(op, activation);
  const plan::Convolution convolution{stride.vec(), padding.vec(), dilation.vec(), groups};
  plan::check_convolution(op, input, weight, bias, convolution);
  return conv_gradients(grad_output, input, weight, bias, gamma, beta, mean, invstd, count, convolution,
                        {activation, slope}, {group_size, group_name}, output_mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, CompositeExplicitAutograd, m) {
  m.impl("sync_conv_batchnorm_forward", &sync_conv_batchnorm_forward);
  m.impl("sync_conv_batchnorm_backward", &sync_conv_batchnorm_backward);
}

}  // namespace my_ops::sync
