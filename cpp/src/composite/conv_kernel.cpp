// Convolution and batch norm as one operator, which keeps nothing between the two: made of operators of torch and of
// this library, so that the same code serves every device, and Meta.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "composite/conv.h"
#include "my_ops/ops.h"
#include "plan/convolution.h"
#include "plan/problem.h"

namespace my_ops {
namespace {

using at::IntArrayRef;
using at::Tensor;
using ops::ConvOutputMask;
using ops::OptionalTensor;

Tensor per_channel(const Tensor& image, at::ScalarType dtype) {
  return at::empty_symint({image.sym_size(1)}, image.options().dtype(dtype));
}

/// Without an activation the output takes the memory of the convolution's.
std::tuple<Tensor, Tensor, Tensor> conv_batchnorm_forward(
    const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& gamma,
    const OptionalTensor& beta, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups, bool training,
    std::optional<double> momentum, double eps, const OptionalTensor& num_batches_tracked, std::string_view activation,
    double slope) {
  const plan::Convolution convolution{stride.vec(), padding.vec(), dilation.vec(), groups};
  plan::check_convolution("conv_batchnorm_forward", input, weight, bias, convolution);
  Tensor z = convolution.run(input, weight, bias);
  const composite::Norm norm{gamma, beta, training, activation, slope};
  if (!norm.plain()) return norm.forward(z, running_mean, running_var, momentum, eps, num_batches_tracked);
  Tensor mean = per_channel(z, plan::accumulation_dtype(z.scalar_type()));
  Tensor invstd = at::empty_like(mean);
  ops::batchnorm_forward_out(z, gamma, beta, running_mean, running_var, training, momentum, eps, num_batches_tracked, z,
                             mean, invstd);
  return {z, mean, invstd};
}

/// The convolution is run anew. Without an activation its output's gradient takes its memory.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_batchnorm_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd,
    IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups, bool training,
    std::string_view activation, double slope, ConvOutputMask output_mask) {
  const plan::Convolution convolution{stride.vec(), padding.vec(), dilation.vec(), groups};
  plan::check_convolution("conv_batchnorm_backward", input, weight, bias, convolution);
  const auto [wants_input, wants_weight, wants_bias, wants_gamma, wants_beta] = output_mask;
  const bool wants_z = wants_input || wants_weight || wants_bias;
  Tensor z = convolution.run(input, weight, bias);
  const composite::Norm norm{gamma, beta, training, activation, slope};
  Tensor dgamma;
  Tensor dbeta;
  if (norm.plain()) {
    dgamma = per_channel(z, gamma ? gamma->scalar_type() : save_mean.scalar_type());
    dbeta = at::empty_like(dgamma);
    ops::batchnorm_backward_out(grad_output, z, gamma, save_mean, save_invstd, training,
                                {wants_z, wants_gamma, wants_beta}, z, dgamma, dbeta);
  } else {
    std::tie(z, dgamma, dbeta) =
        norm.backward(grad_output, z, save_mean, save_invstd, {wants_z, wants_gamma, wants_beta});
  }
  Tensor dx;
  Tensor dw;
  Tensor db;
  if (wants_z) std::tie(dx, dw, db) = convolution.gradients(z, input, weight, {wants_input, wants_weight, wants_bias});
  return {dx, dw, db, wants_gamma ? dgamma : Tensor(), wants_beta ? dbeta : Tensor()};
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, CompositeExplicitAutograd, m) {
  m.impl("conv_batchnorm_forward", &conv_batchnorm_forward);
  m.impl("conv_batchnorm_backward", &conv_batchnorm_backward);
}

}  // namespace my_ops
