// The backward pass over its gradient's memory for devices that have none of their own: results of their own, of which
// one is copied there.
#include <torch/library.h>

#include "my_ops/ops.h"
#include "plan/checks.h"

namespace my_ops {
namespace {

using at::Tensor;
using ops::OptionalTensor;

std::tuple<Tensor, Tensor, Tensor> batchnorm_act_backward_(Tensor& grad_output, const Tensor& input,
                                                           const OptionalTensor& residual, const OptionalTensor& mask,
                                                           const OptionalTensor& gamma, const OptionalTensor& beta,
                                                           const Tensor& save_mean, const Tensor& save_invstd,
                                                           bool training, std::string_view activation, double slope,
                                                           std::array<bool, 4> output_mask) {
  const auto named = plan::activation_named("batchnorm_act_backward_", activation);
  plan::check_act_backward_in_place(grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd, named);
  auto [dx, dresidual, dgamma, dbeta] =
      ops::batchnorm_act_backward(grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd, training,
                                  activation, slope, output_mask);
  const Tensor& image = output_mask[1] ? dresidual : dx;
  if (image.defined()) grad_output.copy_(image);
  return {output_mask[1] ? dx : Tensor(), dgamma, dbeta};
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, CompositeExplicitAutograd, m) {
  m.impl("batchnorm_act_backward_", &batchnorm_act_backward_);
}

}  // namespace my_ops
