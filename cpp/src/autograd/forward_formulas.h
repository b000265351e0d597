// Tangents that the whole forward operators have in common.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "autograd/formulas.h"

namespace my_ops::autograd {

struct ForwardTangents {
  Term output;
  Term mean;
  Term invstd;
};

/// dy/dx is a symmetric matrix, so that the tangent of x goes through batchnorm_backward as a gradient does:
///   y' = batchnorm_backward(x') + gamma'*xhat + beta'
/// In training, with the two sums that batchnorm_backward returns besides:
///   mean' = sum(x')/M        invstd' = -invstd^2 * sum(x'*xhat)/M
ForwardTangents forward_tangents(const at::Tensor& input, const std::optional<at::Tensor>& gamma,
                                 const std::optional<at::Tensor>& beta, bool training, const at::Tensor& mean,
                                 const at::Tensor& invstd);

}  // namespace my_ops::autograd
