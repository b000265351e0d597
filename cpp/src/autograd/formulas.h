// The derivatives of the phases, in differentiable tensor operations: so derivatives of any order follow, in reverse
// mode (gradients), in forward mode (tangents, written x' below) and in any nesting of the two.
//
// Every operator is treated as an honest function of its explicit arguments. save_mean and save_invstd are arguments of
// the backward operator like any other, and autograd adds what flows through them to the forward operator.
//
// Vectors are [C]. Where every image has statistics of its own (instance norm) those are matrices [N, C], and so is all
// that belongs to them; the formulas are the same, sums going over what a statistic is taken of.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>

#include <optional>
#include <utility>

namespace my_ops::autograd {

/// A tensor, or undefined: exactly zero, like a gradient that nobody sent and the tangent of a constant. So a formula
/// is written down whole, and its zeros cost nothing.
class Term {
 public:
  Term() = default;
  Term(at::Tensor tensor) : tensor_(std::move(tensor)) {}
  bool is_zero() const { return !tensor_.defined(); }
  const at::Tensor& tensor() const { return tensor_; }

  friend Term operator+(const Term& a, const Term& b);
  friend Term operator-(const Term& a, const Term& b);
  friend Term operator*(const Term& a, const Term& b);
  friend Term operator/(const Term& a, const c10::Scalar& b);

 private:
  at::Tensor tensor_;
};

/// Undefined stays undefined.
at::Tensor in_dtype(const at::Tensor& tensor, at::ScalarType dtype);

/// A [C] vector as [1, C, 1, ...], or a matrix [N, C] as [N, C, 1, ...], to broadcast against `like`.
at::Tensor per_channel(const at::Tensor& vector, const at::Tensor& like);
Term per_channel(const Term& vector, const at::Tensor& like);

/// Sum over all dimensions but the channels: [C].
at::Tensor channel_sum(const at::Tensor& tensor);

/// Sum over all dimensions but those of `statistic`: [C] or [N, C].
at::Tensor sum_as(const at::Tensor& statistic, const at::Tensor& tensor);
Term sum_as(const at::Tensor& statistic, const Term& tensor);

/// M, the values per channel, to divide by: 1 if there are none, whose sums are 0.
c10::SymInt values_per_channel(const at::Tensor& tensor);

/// How many values of `tensor` a `statistic` is taken of: M, or S if it is [N, C].
c10::SymInt values_per(const at::Tensor& statistic, const at::Tensor& tensor);

/// The tangents of the arguments of one channel-wise problem, in the accumulation dtype.
struct Tangents {
  Term dy;
  Term x;
  Term gamma;
  Term mean;
  Term invstd;
};

/// The tensors of one channel-wise problem, in the accumulation dtype; gamma may be undefined (1), and dy where the
/// operator has none.
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
  at::Tensor sum(const at::Tensor& tensor) const { return sum_as(invstd, tensor); }
  at::Tensor sum_dy() const { return sum(dy); }
  at::Tensor sum_dy_xhat() const { return sum(dy * xhat()); }

  /// xhat' = r*(x' - mean') + (x - mean)*r'
  Term xhat_tangent(const Tangents& t) const;

  /// (gamma*r)' = gamma'*r + gamma*r'
  Term scale_tangent(const Tangents& t) const;
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

/// What flows back to x through batch statistics, with M values each (undefined: no gradient, and none flows):
///   d mean / dx = 1/M      d invstd / dx = -invstd^3 * (x - mean) / M
at::Tensor through_statistics(const at::Tensor& grad_mean, const at::Tensor& grad_invstd, const at::Tensor& x,
                              const at::Tensor& mean, const at::Tensor& invstd);

/// Tangents of the two sums:  sum_dy' = sum dy'        sum_dy_xhat' = sum(dy'*xhat + dy*xhat')
struct SumTangents {
  Term dy;
  Term dy_xhat;
};
SumTangents backward_reduce_tangents(const Normalized& in, const Tangents& t);

/// Tangent of dx = gamma*r * q with q = dy - m1 - xhat*m2:
///   dx' = (gamma*r)'*q + gamma*r * (dy' - m1' - xhat'*m2 - xhat*m2')
/// In eval mode m1, m2 and their tangents are zero.
Term backward_apply_tangent(const Normalized& in, const Tangents& t, const Term& m1, const Term& m2,
                            const Term& m1_tangent, const Term& m2_tangent);

/// Tangent of y = gamma*r * (x - mean) + beta:  y' = (gamma*r)'*(x - mean) + gamma*r*(x' - mean') + beta'
Term apply_tangent(const Normalized& in, const Tangents& t, const Term& beta_tangent);

}  // namespace my_ops::autograd
