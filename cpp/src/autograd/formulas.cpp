#include "autograd/formulas.h"

#include <ATen/ops/zeros_like.h>

#include <vector>

#include "plan/problem.h"

namespace my_ops::autograd {

using at::Tensor;

Tensor per_channel(const Tensor& vector, const Tensor& like) {
  std::vector<int64_t> sizes(like.dim(), 1);
  sizes[1] = -1;
  return vector.reshape(sizes);
}

Tensor channel_sum(const Tensor& tensor) {
  std::vector<int64_t> dims;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (d != 1) dims.push_back(d);
  }
  return tensor.sum(dims);
}

c10::SymInt values_per_channel(const Tensor& tensor) {
  c10::SymInt values = 1;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (d != 1) values = values * tensor.sym_size(d);
  }
  return values == 0 ? c10::SymInt(1) : values;
}

Normalized::Normalized(const Tensor& dy, const Tensor& x, const std::optional<Tensor>& gamma, const Tensor& mean,
                       const Tensor& invstd)
    : invstd(invstd) {
  const auto dtype = plan::accumulation_dtype(x.scalar_type());
  this->dy = dy.to(dtype);
  this->centered = x.to(dtype) - per_channel(mean, x);
  if (gamma) this->gamma = gamma->to(dtype);
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

}  // namespace my_ops::autograd
