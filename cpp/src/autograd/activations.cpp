#include "autograd/activations.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/clamp_max.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <vector>

#include "plan/problem.h"

namespace my_ops::autograd {

using at::Tensor;
using plan::Activation;

namespace {

/// s*(1 + z*v'*(1 - s)) with s = sigmoid(v), v = linear*z + cubic*z^3: the derivative of z*s. sigmoid(-v) = 1 - s.
Tensor gate_derivative(const Tensor& z, double linear, double cubic) {
  const Tensor v = z * (z * z * cubic + linear);
  const Tensor z_slope = z * (z * z * (3 * cubic) + linear);
  return at::sigmoid(v) * (z_slope * at::sigmoid(-v) + 1);
}

/// dy where the derivative is 1.
Tensor select(const Tensor& inside, const Tensor& dy, Activation activation, double slope) {
  const Tensor other = activation == Activation::leaky_relu ? dy * slope : at::zeros_like(dy);
  return at::where(inside, dy, other);
}

}  // namespace

Tensor activation_backward(const Tensor& dy, const Tensor& z, Activation activation, double slope) {
  constexpr double kGelu = 1.5957691216057307;  // 2 * sqrt(2 / pi)
  switch (activation) {
    case Activation::identity:
      return dy;
    case Activation::relu:
    case Activation::leaky_relu:
      return select(z > 0, dy, activation, slope);
    case Activation::relu6:
      return select((z > 0).logical_and(z < 6), dy, activation, slope);
    case Activation::elu:
      return at::where(z > 0, dy, dy * (at::exp(at::clamp_max(z, 0)) * slope));
    case Activation::silu:
      return dy * gate_derivative(z, 1, 0);
    default:
      return dy * gate_derivative(z, kGelu, 0.044715 * kGelu);
  }
}

Tensor masked_backward(const Tensor& dy, const Tensor& mask, const Tensor& input, Activation activation, double slope) {
  const Tensor bits = mask.unsqueeze(1).__rshift__(at::arange(8, mask.options())).__and__(1).reshape({-1});
  // Sizes in the order of the output's memory.
  const bool contiguous = plan::dense(input).is_contiguous();
  std::vector<c10::SymInt> sizes(input.sym_sizes().begin(), input.sym_sizes().end());
  if (!contiguous) {
    sizes.push_back(sizes[1]);
    sizes.erase(sizes.begin() + 1);
  }
  const Tensor inside = bits.slice_symint(0, 0, input.sym_numel()).view_symint(sizes).to(at::kBool);
  return select(contiguous ? inside : inside.movedim(-1, 1), dy, activation, slope);
}

}  // namespace my_ops::autograd
