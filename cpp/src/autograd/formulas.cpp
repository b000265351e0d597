#include "autograd/formulas.h"

#include <ATen/ops/zeros_like.h>

#include <vector>

#include "plan/problem.h"

namespace my_ops::autograd {

using at::Tensor;

Term operator+(const Term& a, const Term& b) {
  if (a.is_zero()) return b;
  return b.is_zero() ? a : Term(a.tensor_ + b.tensor_);
}

Term operator-(const Term& a, const Term& b) {
  if (b.is_zero()) return a;
  return a.is_zero() ? -b.tensor_ : a.tensor_ - b.tensor_;
}

Term operator*(const Term& a, const Term& b) {
  return a.is_zero() || b.is_zero() ? Term() : Term(a.tensor_ * b.tensor_);
}

Term operator/(const Term& a, const c10::Scalar& b) { return a.is_zero() ? Term() : Term(a.tensor_ / b); }

Tensor in_dtype(const Tensor& tensor, at::ScalarType dtype) {
  return tensor.defined() && tensor.scalar_type() != dtype ? tensor.to(dtype) : tensor;
}

Tensor per_channel(const Tensor& vector, const Tensor& like) {
  std::vector<int64_t> sizes(like.dim(), 1);
  sizes[1] = -1;
  return vector.reshape(sizes);
}

Term per_channel(const Term& vector, const Tensor& like) {
  return vector.is_zero() ? Term() : Term(per_channel(vector.tensor(), like));
}

Tensor channel_sum(const Tensor& tensor) {
  std::vector<int64_t> dims;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (d != 1) dims.push_back(d);
  }
  return tensor.sum(dims);
}

Term channel_sum(const Term& tensor) { return tensor.is_zero() ? Term() : Term(channel_sum(tensor.tensor())); }

c10::SymInt values_per_channel(const Tensor& tensor) {
  c10::SymInt values = 1;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (d != 1) values = values * tensor.sym_size(d);
  }
  return values == 0 ? c10::SymInt(1) : values;
}

Tensor through_statistics(const Tensor& grad_mean, const Tensor& grad_invstd, const Tensor& x, const Tensor& mean,
                          const Tensor& invstd) {
  const c10::Scalar count(values_per_channel(x));
  Term gradient;
  if (grad_mean.defined()) gradient = per_channel(grad_mean / count, x).expand_symint(x.sym_sizes());
  if (grad_invstd.defined()) {
    const Tensor slope = -grad_invstd * invstd * invstd * invstd / count;
    const Tensor centered = x.to(mean.scalar_type()) - per_channel(mean, x);
    gradient = gradient + centered * per_channel(slope, x);
  }
  return in_dtype(gradient.tensor(), x.scalar_type());
}

Normalized::Normalized(const Tensor& dy, const Tensor& x, const std::optional<Tensor>& gamma, const Tensor& mean,
                       const Tensor& invstd)
    : invstd(invstd) {
  const auto dtype = plan::accumulation_dtype(x.scalar_type());
  if (dy.defined()) this->dy = dy.to(dtype);
  this->centered = x.to(dtype) - per_channel(mean, x);
  if (gamma) this->gamma = gamma->to(dtype);
}

Term Normalized::xhat_tangent(const Tangents& t) const {
  return (t.x - per_channel(t.mean, centered)) * per_channel(invstd, centered) +
         per_channel(t.invstd, centered) * centered;
}

Term Normalized::scale_tangent(const Tangents& t) const {
  return t.gamma * invstd + (gamma.defined() ? t.invstd * gamma : t.invstd);
}

BackwardApplyGradients backward_apply_gradients(const Tensor& u_, const Normalized& in, const Tensor& m1,
                                                const Tensor& m2) {
  const Tensor u = u_.to(in.dy.scalar_type());
  const Tensor sum_u_dy = channel_sum(u * in.dy);
  BackwardApplyGradients out;
  out.dy = u * per_channel(in.scale(), u);
  if (!m1.defined()) {
    out.gamma = in.invstd * sum_u_dy;
    out.invstd = in.times_gamma(sum_u_dy);
    return out;
  }
  const Tensor sum_u = channel_sum(u);
  const Tensor sum_u_xhat = channel_sum(u * in.xhat());
  const Tensor inner = sum_u_dy - sum_u * m1 - sum_u_xhat * m2;
  const Tensor slope = in.scale() * in.invstd * m2;  // of dx along -U, in x
  out.x = -u * per_channel(slope, u);
  out.gamma = in.invstd * inner;
  out.mean = slope * sum_u;
  out.invstd = in.times_gamma(inner - sum_u_xhat * m2);
  out.m1 = -in.scale() * sum_u;
  out.m2 = -in.scale() * sum_u_xhat;
  return out;
}

BackwardReduceGradients backward_reduce_gradients(const Tensor& a_, const Tensor& b_, const Normalized& in) {
  const auto dtype = in.dy.scalar_type();
  const Tensor a = a_.defined() ? a_.to(dtype) : at::zeros_like(in.invstd);
  const Tensor b = b_.defined() ? b_.to(dtype) : at::zeros_like(in.invstd);
  const Tensor slope = b * in.invstd;
  return {per_channel(a, in.dy) + in.centered * per_channel(slope, in.dy), in.dy * per_channel(slope, in.dy),
          -slope * channel_sum(in.dy), b * channel_sum(in.dy * in.centered)};
}

SumTangents backward_reduce_tangents(const Normalized& in, const Tangents& t) {
  Term terms = in.xhat_tangent(t) * in.dy;
  if (!t.dy.is_zero()) terms = terms + t.dy * in.xhat();
  return {channel_sum(t.dy), channel_sum(terms)};
}

Term backward_apply_tangent(const Normalized& in, const Tangents& t, const Term& m1, const Term& m2,
                            const Term& m1_tangent, const Term& m2_tangent) {
  const auto wide = [&](const Term& vector) { return per_channel(vector, in.dy); };
  const Tensor xhat = in.xhat();
  const Term q = in.dy - wide(m1) - wide(m2) * xhat;
  const Term q_tangent = t.dy - wide(m1_tangent) - in.xhat_tangent(t) * wide(m2) - wide(m2_tangent) * xhat;
  return wide(in.scale_tangent(t)) * q + wide(in.scale()) * q_tangent;
}

Term apply_tangent(const Normalized& in, const Tangents& t, const Term& beta_tangent) {
  const auto wide = [&](const Term& vector) { return per_channel(vector, in.centered); };
  return wide(in.scale_tangent(t)) * in.centered + wide(in.scale()) * (t.x - wide(t.mean)) + wide(beta_tangent);
}

}  // namespace my_ops::autograd
