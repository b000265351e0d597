// What the derivatives of the whole forward operators have in common: the saved statistics, which in training are
// functions of the input, and the tangents.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "autograd/formulas.h"

namespace my_ops::autograd {

/// The gradient of input through the statistics of a batch, undefined where both of theirs are:
///   d mean / dx = 1/M      d invstd / dx = -invstd^3 * (x - mean) / M
at::Tensor through_statistics(const at::Tensor& grad_mean, const at::Tensor& grad_invstd, const at::Tensor& input,
                              const at::Tensor& mean, const at::Tensor& invstd);

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
