#include "plan/invertible.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/amin.h>
#include <ATen/ops/elu_backward.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <limits>
#include <vector>

namespace my_ops::plan {
namespace {

using at::Tensor;

struct Precision {
  double roundoff;  // of storing, computing and inverting
  double smallest;  // positive number
  double allowed;   // error of xhat
};

Precision precision_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return {0x5p-53, std::numeric_limits<double>::denorm_min(), 0x1p-32};
    case at::kFloat:
      return {0x5p-24, 0x1p-149, 0x1p-12};
    case at::kBFloat16:
      return {0x1p-8 + 0x4p-24, 0x1p-133, 0x1p-5};
    default:
      return {0x1p-11 + 0x4p-24, 0x1p-24, 0x1p-5};
  }
}

/// z at the smallest and the largest x of each channel, whichever is less.
Tensor least_z(const Tensor& x, const Tensor& gamma, const Tensor& beta, const Tensor& mean, const Tensor& invstd) {
  std::vector<int64_t> dims;
  for (int64_t d = 0; d < x.dim(); ++d) {
    if (d != 1) dims.push_back(d);
  }
  const auto z = [&](const Tensor& values) { return (values.to(at::kDouble) - mean) * invstd * gamma + beta; };
  return at::minimum(z(x.amin(dims)), z(x.amax(dims)));
}

}  // namespace

bool is_invertible(Activation activation, double slope) {
  if (activation == Activation::identity) return true;
  return (activation == Activation::leaky_relu || activation == Activation::elu) && slope > 0;
}

Tensor channels_to_keep(const Tensor& x, const std::optional<Tensor>& gamma_, const std::optional<Tensor>& beta_,
                        const Tensor& mean_, const Tensor& invstd_, Activation activation, double slope) {
  const Precision precision = precision_of(x.scalar_type());
  const Tensor mean = mean_.to(at::kDouble);
  const Tensor invstd = invstd_.to(at::kDouble);
  const Tensor gamma = gamma_ ? gamma_->to(at::kDouble) : at::ones_like(mean);
  const Tensor beta = beta_ ? beta_->to(at::kDouble) : at::zeros_like(mean);
  const double least_slope = activation == Activation::identity ? 1 : std::min(slope, 1.0);
  const double smallest = precision.smallest / least_slope;
  Tensor error = beta.abs() * precision.roundoff + smallest;
  if (activation == Activation::elu && x.numel() > 0) {
    error = error + at::exp(-least_z(x, gamma, beta, mean, invstd)) * (precision.roundoff + smallest);
  }
  const double normal =
      mean_.scalar_type() == at::kDouble ? std::numeric_limits<double>::min() : std::numeric_limits<float>::min();
  const Tensor has_reciprocal = gamma.abs() * invstd.clamp_max(1) >= normal;
  return (error / gamma.abs() <= precision.allowed).logical_and(has_reciprocal).logical_not().nonzero().squeeze(1);
}

Tensor input_to_keep(const Tensor& x, const Tensor& kept) {
  return kept.size(0) == x.size(1) ? x.clone() : x.index_select(1, kept);
}

void check_kept(const char* op, const Tensor& kept, int64_t channels) {
  if (!kept.is_cpu()) return;
  const Tensor dense = kept.contiguous();
  for (int64_t i = 0; i < dense.numel(); ++i) {
    const int64_t channel = dense.const_data_ptr<int64_t>()[i];
    TORCH_CHECK(channel >= 0 && channel < channels, op, ": expected kept of channels from 0 to ", channels - 1,
                ", got ", channel);
  }
}

bool keeps_all(const Tensor& kept, int64_t channels) {
  if (kept.size(0) != channels) return false;
  const Tensor dense = kept.contiguous();
  for (int64_t i = 0; i < channels; ++i) {
    if (dense.const_data_ptr<int64_t>()[i] != i) return false;
  }
  return true;
}

Tensor gradient_from_output(const Tensor& dy, const Tensor& y, Activation activation, double slope) {
  switch (activation) {
    case Activation::leaky_relu:
      return at::leaky_relu_backward(dy, y, slope, /*self_is_result=*/true);
    case Activation::elu:
      return at::elu_backward(dy, slope, /*scale=*/1, /*input_scale=*/1, /*is_result=*/true, y);
    default:
      return dy;
  }
}

}  // namespace my_ops::plan
