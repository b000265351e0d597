// The partial derivatives of the phases, in differentiable tensor operations: so derivatives of any order follow.
//
// Every operator is treated as an honest function of its explicit arguments. save_mean and save_invstd are arguments of
// the backward operator like any other, and autograd adds what flows through them to the forward operator.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>

#include <optional>

namespace my_ops::autograd {

/// A [C] vector as [1, C, 1, ...], to broadcast against `like`.
at::Tensor per_channel(const at::Tensor& vector, const at::Tensor& like);

/// Sum over all dimensions but the channels: [C].
at::Tensor channel_sum(const at::Tensor& tensor);

/// M, the values per channel, to divide by: 1 if there are none, whose sums are 0.
c10::SymInt values_per_channel(const at::Tensor& tensor);

/// The tensors of one channel-wise problem, in the accumulation dtype; gamma may be undefined (1).
struct Normalized {
  at::Tensor dy;
  at::Tensor centered;  // x - mean
  at::Tensor gamma;
  at::Tensor invstd;

  Normalized(const at::Tensor& dy, const at::Tensor& x, const std::optional<at::Tensor>& gamma, const at::Tensor& mean,
             const at::Tensor& invstd);

  at::Tensor xhat() const { return centered * per_channel(invstd, centered); }
  at::Tensor scale() const { return gamma.defined() ? gamma * invstd : invstd; }
  at::Tensor times_gamma(const at::Tensor& vector) const { return gamma.defined() ? gamma * vector : vector; }
};

/// Gradients with respect to the arguments of dx = gamma * r * (dy - m1 - xhat * m2), all in the accumulation dtype.
struct BackwardApplyGradients {
  at::Tensor dy;
  at::Tensor x;
  at::Tensor gamma;
  at::Tensor mean;
  at::Tensor invstd;
  at::Tensor m1;
  at::Tensor m2;
};

/// With U the gradient of dx, r = invstd, A = sum U, B = sum U*xhat, D = sum U*dy per channel:
///   d/d dy = gamma*r*U           d/d gamma = r*(D - A*m1 - B*m2)
///   d/d x = -gamma*r^2*m2*U      d/d mean = gamma*r^2*m2*A      d/d r = gamma*(D - A*m1 - 2*B*m2)
///   d/d m1 = -gamma*r*A          d/d m2 = -gamma*r*B
/// Undefined m1 and m2 are zero (eval mode), and their gradients undefined.
BackwardApplyGradients backward_apply_gradients(const at::Tensor& u, const Normalized& in, const at::Tensor& m1,
                                                const at::Tensor& m2);

/// Gradients with respect to the arguments of sum_dy = sum dy and sum_dy_xhat = sum dy*(x - mean)*r.
struct BackwardReduceGradients {
  at::Tensor dy;
  at::Tensor x;
  at::Tensor mean;
  at::Tensor invstd;
};

/// With a, b the gradients of the two sums (undefined: zero):
///   d/d dy = a + b*xhat    d/d x = b*r*dy    d/d mean = -b*r*sum(dy)    d/d r = b*sum(dy*(x - mean))
BackwardReduceGradients backward_reduce_gradients(const at::Tensor& a, const at::Tensor& b, const Normalized& in);

}  // namespace my_ops::autograd
