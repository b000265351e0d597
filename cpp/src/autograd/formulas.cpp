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
  if (vector.dim() == 2) {
    std::vector<c10::SymInt> sizes(like.dim(), 1);
    sizes[0] = vector.sym_size(0);
    sizes[1] = vector.sym_size(1);
    return vector.reshape_symint(sizes);
  }
  std::vector<int64_t> sizes(like.dim(), 1);
  sizes[1] = -1;
  return vector.reshape(sizes);
}

Term per_channel(const Term& vector, const Tensor& like) {
  return vector.is_zero() ? Term() : Term(per_channel(vector.tensor(), like));
}

namespace {

/// The dimensions of an image that a statistic is taken over: all but the second, for [N, C] but the first two.
std::vector<int64_t> summed(int64_t rank, bool of_images) {
  std::vector<int64_t> dims;
  for (int64_t d = of_images ? 2 : 0; d < rank; ++d) {
    if (d != 1) dims.push_back(d);
  }
  return dims;
}

c10::SymInt values_along(const Tensor& tensor, const std::vector<int64_t>& dims) {
  c10::SymInt values = 1;
  for (const int64_t d : dims) values = values * tensor.sym_size(d);
  return values == 0 ? c10::SymInt(1) : values;
}

bool of_images(const Tensor& statistic) { return statistic.dim() == 2; }

}  // namespace

Tensor channel_sum(const Tensor& tensor) { return tensor.sum(summed(tensor.dim(), false)); }

Tensor sum_as(const Tensor& statistic, const Tensor& tensor) {
  return tensor.sum(summed(tensor.dim(), of_images(statistic)));
}

Term sum_as(const Tensor& statistic, const Term& tensor) {
  return tensor.is_zero() ? Term() : Term(sum_as(statistic, tensor.tensor()));
}

c10::SymInt values_per_channel(const Tensor& tensor) { return values_along(tensor, summed(tensor.dim(), false)); }

c10::SymInt values_per(const Tensor& statistic, const Tensor& tensor) {
  return values_along(tensor, summed(tensor.dim(), of_images(statistic)));
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
  const Tensor sum_u_dy = in.sum(u * in.dy);
  BackwardApplyGradients out;
  out.dy = u * per_channel(in.scale(), u);
  if (!m1.defined()) {
    out.gamma = in.invstd * sum_u_dy;
    out.invstd = in.times_gamma(sum_u_dy);
    return out;
  }
  const Tensor sum_u = in.sum(u);
  const Tensor sum_u_xhat = in.sum(u * in.xhat());
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
          -slope * in.sum_dy(), b * in.sum(in.dy * in.centered)};
}

Tensor through_statistics(const Tensor& grad_mean, const Tensor& grad_invstd, const Tensor& x, const Tensor& mean,
                          const Tensor& invstd) {
  const c10::Scalar count(values_per(mean, x));
  Tensor gradient;
  if (grad_mean.defined()) gradient = per_channel(grad_mean / count, x).expand_symint(x.sym_sizes());
  if (grad_invstd.defined()) {
    const Tensor slope = -grad_invstd * invstd * invstd * invstd / count;
    const Tensor centered = x.to(mean.scalar_type()) - per_channel(mean, x);
    gradient = (Term(gradient) + centered * per_channel(slope, x)).tensor();
  }
  return in_dtype(gradient, x.scalar_type());
}

SumTangents backward_reduce_tangents(const Normalized& in, const Tangents& t) {
  Term terms = in.xhat_tangent(t) * in.dy;
  if (!t.dy.is_zero()) terms = terms + t.dy * in.xhat();
  return {sum_as(in.invstd, t.dy), sum_as(in.invstd, terms)};
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
