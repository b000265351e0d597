// What comes behind the convolution in conv_batchnorm: batch norm, or batch norm and an activation. Both directions are
// differentiable, as the operators are that they call.
#pragma once

#include <optional>
#include <string_view>
#include <tuple>

#include "my_ops/ops.h"

namespace my_ops::composite {

constexpr std::string_view kNoActivation = "identity";

/// The arguments of both, but for the tensors of one call.
struct Norm {
  const ops::OptionalTensor& gamma;
  const ops::OptionalTensor& beta;
  bool training;
  std::string_view activation;
  double slope;

  bool plain() const { return activation == kNoActivation; }

  /// output, mean, invstd
  std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& z, const ops::OptionalTensor& running_mean,
                                                         const ops::OptionalTensor& running_var,
                                                         std::optional<double> momentum, double eps,
                                                         const ops::OptionalTensor& num_batches_tracked) const {
    if (plain()) {
      return ops::batchnorm_forward(z, gamma, beta, running_mean, running_var, training, momentum, eps,
                                    num_batches_tracked);
    }
    auto [output, mean, invstd, mask] =
        ops::batchnorm_act_forward(z, std::nullopt, gamma, beta, running_mean, running_var, training, momentum, eps,
                                   activation, slope, num_batches_tracked);
    return {output, mean, invstd};
  }

  /// Gradients of z, gamma and beta.
  std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad_output, const at::Tensor& z,
                                                          const at::Tensor& mean, const at::Tensor& invstd,
                                                          ops::OutputMask wanted) const {
    if (plain()) return ops::batchnorm_backward(grad_output, z, gamma, mean, invstd, training, wanted);
    auto [dz, dresidual, dgamma, dbeta] =
        ops::batchnorm_act_backward(grad_output, z, std::nullopt, std::nullopt, gamma, beta, mean, invstd, training,
                                    activation, slope, {wanted[0], false, wanted[1], wanted[2]});
    return {dz, dgamma, dbeta};
  }
};

}  // namespace my_ops::composite
