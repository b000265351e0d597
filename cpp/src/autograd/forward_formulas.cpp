#include "autograd/forward_formulas.h"

#include "autograd/tangents.h"
#include "my_ops/ops.h"

namespace my_ops::autograd {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

ForwardTangents forward_tangents(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                                 bool training, const Tensor& mean, const Tensor& invstd) {
  const Tensor x = primal_of(input);
  const Tensor x_tangent = tangent_of(input);
  const Tensor gamma_tangent = tangent_of(gamma);
  const Tensor beta_tangent = tangent_of(beta);
  ForwardTangents out;
  if (x_tangent.defined()) {
    OptionalTensor wide_gamma = primal_of(gamma);  // the sums have its dtype
    if (wide_gamma) wide_gamma = in_dtype(*wide_gamma, mean.scalar_type());
    auto [through_x, sum_xhat, sum] =
        ops::batchnorm_backward(x_tangent, x, wide_gamma, mean, invstd, training, {true, training, training});
    out.output = through_x;
    if (training) {
      const c10::Scalar count(values_per_channel(x));
      out.mean = sum / count;
      out.invstd = -invstd * invstd * sum_xhat / count;
    }
  }
  if (gamma_tangent.defined()) {
    const auto shift = beta_tangent.defined() ? OptionalTensor(beta_tangent) : std::nullopt;
    out.output = out.output + ops::batchnorm_apply(x, gamma_tangent, shift, mean, invstd);
  } else {
    out.output = out.output + per_channel(Term(beta_tangent), x);
  }
  return out;
}

}  // namespace my_ops::autograd
