#include "plan/convolution.h"

#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <c10/core/ScalarType.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace my_ops::plan {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

void check_list(const char* op, const char* name, at::IntArrayRef values, int64_t spatial, int64_t least) {
  bool fits = static_cast<int64_t>(values.size()) == spatial;
  for (const int64_t value : values) fits = fits && value >= least;
  TORCH_CHECK(fits, op, ": expected ", name, " of ", spatial, " numbers, each ", least, " or more, got ", values);
}

void check_like(const char* op, const char* name, const Tensor& tensor, const Tensor& input) {
  TORCH_CHECK(tensor.device() == input.device(), op, ": expected ", name, " on device ", input.device(), ", got ",
              tensor.device());
  TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), op, ": expected ", name, " of dtype ",
              c10::getDtypeNames(input.scalar_type()).first, ", got ", c10::getDtypeNames(tensor.scalar_type()).first);
}

}  // namespace

Tensor Convolution::run(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) const {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const std::vector<int64_t> none(stride.size(), 0);
  return at::convolution(input, weight, bias, stride, padding, dilation, /*transposed=*/false, none, groups);
}

std::tuple<Tensor, Tensor, Tensor> Convolution::gradients(const Tensor& grad_output, const Tensor& input,
                                                          const Tensor& weight, std::array<bool, 3> output_mask) const {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const std::vector<int64_t> none(stride.size(), 0);
  const std::vector<c10::SymInt> bias_sizes{weight.sym_size(0)};
  return at::convolution_backward_symint(grad_output, input, weight, bias_sizes, c10::fromIntArrayRefSlow(stride),
                                         c10::fromIntArrayRefSlow(padding), c10::fromIntArrayRefSlow(dilation),
                                         /*transposed=*/false, c10::fromIntArrayRefSlow(none), groups, output_mask);
}

void check_convolution(const char* op, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                       const Convolution& convolution) {
  const int64_t spatial = input.dim() - 2;
  const int64_t groups = convolution.groups;
  TORCH_CHECK(spatial >= 1 && spatial <= 3, op, ": expected input of rank 3, 4 or 5, got shape ", input.sym_sizes());
  TORCH_CHECK(weight.dim() == input.dim(), op, ": expected weight of rank ", input.dim(), ", got shape ",
              weight.sym_sizes());
  check_like(op, "weight", weight, input);
  TORCH_CHECK(groups >= 1 && weight.sym_size(0) % groups == 0, op, ": expected groups that divide the ",
              weight.sym_size(0), " output channels, got ", groups);
  TORCH_CHECK(input.sym_size(1) == weight.sym_size(1) * groups, op, ": expected input of ", weight.sym_size(1) * groups,
              " channels, got shape ", input.sym_sizes());
  if (bias) {
    TORCH_CHECK(bias->dim() == 1 && bias->sym_size(0) == weight.sym_size(0), op, ": expected bias of shape [",
                weight.sym_size(0), "], got ", bias->sym_sizes());
    check_like(op, "bias", *bias, input);
  }
  check_list(op, "stride", convolution.stride, spatial, 1);
  check_list(op, "padding", convolution.padding, spatial, 0);
  check_list(op, "dilation", convolution.dilation, spatial, 1);
}

}  // namespace my_ops::plan
