// Forward mode: reading the tangents of arguments, and setting those of results.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>

#include <optional>

#include "autograd/formulas.h"

namespace my_ops::autograd {

template <class... Tensors>
bool any_tangent(const Tensors&... tensors) {
  return (torch::autograd::isFwGradDefined(tensors) || ...);
}

/// torch has one level of dual numbers; torch.func nests them by wrapping tensors, not by more levels.
constexpr uint64_t kLevel = 0;

/// Undefined if it has none.
inline at::Tensor tangent_of(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->_fw_grad(kLevel) : at::Tensor();
}

/// The tensor without its tangent, for formulas: a tangent must not have one itself.
inline at::Tensor primal_of(const at::Tensor& tensor) {
  return torch::autograd::isFwGradDefined(tensor) ? tensor._fw_primal(kLevel) : tensor;
}

inline std::optional<at::Tensor> primal_of(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional<at::Tensor>(primal_of(*tensor)) : std::nullopt;
}

inline Tangents tangents_of(const std::optional<at::Tensor>& dy, const at::Tensor& x,
                            const std::optional<at::Tensor>& gamma, const at::Tensor& mean, const at::Tensor& invstd) {
  const auto wide = [&](const std::optional<at::Tensor>& tensor) {
    return in_dtype(tangent_of(tensor), mean.scalar_type());
  };
  return {wide(dy), wide(x), wide(gamma), wide(mean), wide(invstd)};
}

/// Nothing is set on outputs that the caller left out. A formula may leave out dimensions in which its value is
/// constant.
inline void set_tangent(const at::Tensor& output, const Term& tangent) {
  if (!output.defined() || tangent.is_zero()) return;
  const at::Tensor value = in_dtype(tangent.tensor(), output.scalar_type()).expand_symint(output.sym_sizes());
  output._set_fw_grad(value, kLevel, /*is_inplace_op=*/false);
}

}  // namespace my_ops::autograd
