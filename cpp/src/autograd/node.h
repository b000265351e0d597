// What the derivatives share: making a node, saving tensors for the backward pass, reading and setting tangents.
//
// The nodes are hand-written, like those that torch generates for its own operators: torch::autograd::Function does not
// work under torch.func transforms.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <type_traits>

#include "autograd/formulas.h"

namespace my_ops::autograd {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::variable_list;

/// torch owns its nodes by intrusive_ptr from 2.13 on, by shared_ptr before.
using NodePointer = decltype(torch::autograd::Edge::function);
template <class N>
using PointerTo = std::conditional_t<std::is_same_v<NodePointer, std::shared_ptr<torch::autograd::Node>>,
                                     std::shared_ptr<N>, c10::intrusive_ptr<N>>;

template <class N, class... Inputs>
PointerTo<N> make_node(const Inputs&... inputs) {
  PointerTo<N> node;
  if constexpr (std::is_same_v<PointerTo<N>, std::shared_ptr<N>>) {
    node = PointerTo<N>(new N(), [](auto* n) { deleteNode(n); });
  } else {
    node = c10::make_intrusive<N>();
  }
  node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  return node;
}

/// Undefined counts as zero.
inline Tensor sum_of(const Tensor& a, const Tensor& b) { return (Term(a) + b).tensor(); }

inline Tensor in_dtype(const Tensor& gradient, at::ScalarType dtype) {
  return gradient.defined() && gradient.scalar_type() != dtype ? gradient.to(dtype) : gradient;
}

/// As the operators take arguments that may be left out.
inline OptionalTensor none_if_undefined(Tensor tensor) {
  return tensor.defined() ? OptionalTensor(std::move(tensor)) : std::nullopt;
}

/// A node with kSaved saved tensors, each possibly absent.
template <size_t kSaved>
class SavingNode : public torch::autograd::Node {
 public:
  void save(size_t index, const OptionalTensor& tensor, bool is_output = false) {
    saved_[index] = torch::autograd::SavedVariable(tensor, is_output);
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& saved : saved_) saved.reset_data();
  }

 protected:
  /// Undefined if absent; an error if released or changed in place since.
  Tensor saved(size_t index) { return saved_[index].unpack(getptr()); }

  OptionalTensor saved_optional(size_t index) { return none_if_undefined(saved(index)); }

  bool wants(size_t input) { return task_should_compute_output(input); }

  /// Only gradients that somebody waits for, each in the dtype of the input it belongs to.
  Tensor if_wanted(size_t input, const Tensor& gradient, at::ScalarType dtype) {
    return wants(input) ? in_dtype(gradient, dtype) : Tensor();
  }

 private:
  std::array<torch::autograd::SavedVariable, kSaved> saved_;
};

/// The kernels write running statistics; saved copies of them must notice.
inline void count_change(const OptionalTensor& tensor) {
  if (tensor) torch::autograd::increment_version(*tensor);
}

template <class... Tensors>
bool any_tangent(const Tensors&... tensors) {
  return (torch::autograd::isFwGradDefined(tensors) || ...);
}

/// torch has one level of dual numbers; torch.func nests them by wrapping tensors, not by more levels.
constexpr uint64_t kLevel = 0;

/// Undefined if it has none.
inline Tensor tangent_of(const OptionalTensor& tensor) { return tensor ? tensor->_fw_grad(kLevel) : Tensor(); }

/// The tensor without its tangent, for formulas: a tangent must not have one itself.
inline Tensor primal_of(const Tensor& tensor) {
  return torch::autograd::isFwGradDefined(tensor) ? tensor._fw_primal(kLevel) : tensor;
}

inline OptionalTensor primal_of(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(primal_of(*tensor)) : std::nullopt;
}

inline Tangents tangents_of(const OptionalTensor& dy, const Tensor& x, const OptionalTensor& gamma, const Tensor& mean,
                            const Tensor& invstd) {
  const auto wide = [&](const OptionalTensor& tensor) { return in_dtype(tangent_of(tensor), mean.scalar_type()); };
  return {wide(dy), wide(x), wide(gamma), wide(mean), wide(invstd)};
}

/// Nothing is set on outputs that the caller left out. A formula may leave out dimensions in which its value is
/// constant.
inline void set_tangent(const Tensor& output, const Term& tangent) {
  if (!output.defined() || tangent.is_zero()) return;
  const Tensor value = in_dtype(tangent.tensor(), output.scalar_type()).expand_symint(output.sym_sizes());
  output._set_fw_grad(value, kLevel, /*is_inplace_op=*/false);
}

}  // namespace my_ops::autograd
