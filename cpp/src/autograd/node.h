// What the derivative nodes share: making one, saving tensors for the backward pass, being recorded by compiled
// autograd.
//
// The nodes are hand-written, like those that torch generates for its own operators: torch::autograd::Function does not
// work under torch.func transforms.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/ScalarType.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <array>
#include <memory>
#include <mutex>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "autograd/formulas.h"
#include "plan/activation.h"
#include "plan/convolution.h"
#include "sync/collectives.h"

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

/// As the operators take arguments that may be left out.
inline OptionalTensor none_if_undefined(Tensor tensor) {
  return tensor.defined() ? OptionalTensor(std::move(tensor)) : std::nullopt;
}

/// What derivatives depend on besides tensors. A node uses what its operator has.
struct Constants {
  bool training = true;
  bool channels_last = false;  // of an input that is not saved, or whose memory a mask follows
  at::ScalarType beta_dtype = at::kFloat;
  plan::Convolution convolution;
  sync::Group group;
  plan::Activation activation = plan::Activation::identity;
  double slope = 0;
};

/// A node with kSaved saved tensors, each possibly absent.
template <class Derived, size_t kSaved>
class SavingNode : public torch::autograd::Node {
 public:
  Constants constants;

  void save(size_t index, const OptionalTensor& tensor, bool is_output = false) {
    saved_[index] = torch::autograd::SavedVariable(tensor, is_output);
    is_output_[index] = is_output;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& saved : saved_) saved.reset_data();
  }

  /// Compiled autograd records this node in a graph. Saved tensors become inputs of the graph; what else apply()
  /// depends on is the key under which the graph is found again.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    for (size_t i = 0; i < kSaved; ++i) args.collect(saved_[i], is_output_[i]);
    for (const bool wanted : all_wanted()) args.collect(wanted);
    args.collect(constants.training);
    args.collect(constants.channels_last);
    args.collect(constants.beta_dtype);
    const auto& [stride, padding, dilation, groups] = constants.convolution;
    for (const auto* numbers : {&stride, &padding, &dilation}) args.collect(*numbers);
    args.collect(groups);
    args.collect(constants.group.size);
    args.collect(constants.group.name);
    args.collect(static_cast<int64_t>(constants.activation));
    args.collect(constants.slope);
  }

  /// The record is a call of a function, which is apply() of a copy of this node that holds the graph's tensors.
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& graph) override {
    namespace compiled = torch::dynamo::autograd;
    const auto apply_copy = [constants = constants, wanted = all_wanted()](const variable_list& grads,
                                                                           const std::vector<c10::IValue>& tensors) {
      const auto node = make_node<Derived>();
      node->constants = constants;
      node->wanted_ = wanted;
      for (size_t i = 0; i < kSaved; ++i) node->save(i, tensors[i].toTensor());
      return node->apply(variable_list(grads));
    };
    for (auto& saved : saved_) graph.before(saved);
    std::vector<c10::IValue> tensors;
    for (size_t i = 0; i < kSaved; ++i) tensors.emplace_back(saved(i));
    for (auto& saved : saved_) graph.after(saved);
    const auto& compiler = compiled::getPyCompilerInterface();
    const std::vector<at::TypePtr> types(kSaved, at::TensorType::get());
    const auto function = compiler->bind_function(graph.get_py_compiler(), name(), apply_copy, types,
                                                  /*is_custom_function=*/true);
    using Metadata = compiled::IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>;
    return compiler->call_function(graph.get_py_compiler(), "apply_functional", function, grads, tensors,
                                   Metadata::pack(compiled::get_input_metadata(next_edges())));
  }

 protected:
  /// Undefined if absent; an error if released or changed in place since.
  Tensor saved(size_t index) {
    const std::lock_guard<std::mutex> lock(mutex_);  // another thread may be in release_variables
    return saved_[index].unpack(getptr());
  }

  OptionalTensor saved_optional(size_t index) { return none_if_undefined(saved(index)); }

  /// In memory as the operator's input was. Hooks of saved tensors, as torch's save_on_cpu, may unpack it otherwise.
  Tensor in_layout_of_input(const Tensor& tensor) const {
    const Tensor as_contiguous = constants.channels_last ? tensor.movedim(1, -1) : tensor;
    if (as_contiguous.is_contiguous()) return tensor;
    return constants.channels_last ? as_contiguous.contiguous().movedim(-1, 1) : as_contiguous.contiguous();
  }

  bool wants(size_t input) const { return wanted_.empty() ? task_should_compute_output(input) : wanted_[input]; }

  /// gamma for a backward operator, which gives beta's gradient in gamma's dtype, too: one that is wide enough for it.
  OptionalTensor gamma_as_wide_as_beta(const OptionalTensor& gamma, bool wants_beta) const {
    if (!gamma || !wants_beta) return gamma;
    return in_dtype(*gamma, c10::promoteTypes(gamma->scalar_type(), constants.beta_dtype));
  }

  /// So gamma's gradient may be wider than gamma.
  static Tensor in_dtype_of(const OptionalTensor& gamma, const Tensor& gradient) {
    return gamma ? in_dtype(gradient, gamma->scalar_type()) : gradient;
  }

  /// Only gradients that somebody waits for, each in the dtype of the input it belongs to.
  Tensor if_wanted(size_t input, const Tensor& gradient, at::ScalarType dtype) {
    return wants(input) ? in_dtype(gradient, dtype) : Tensor();
  }

 private:
  std::array<torch::autograd::SavedVariable, kSaved> saved_;
  std::array<bool, kSaved> is_output_{};
  std::vector<bool> wanted_;  // empty: ask the graph task

  std::vector<bool> all_wanted() const {
    std::vector<bool> all;
    for (size_t i = 0; i < num_outputs(); ++i) all.push_back(wants(i));
    return all;
  }
};

/// Whether a node may write a result over a gradient that came in: where torch's engine itself adds to one in place,
/// because nobody else holds it and nothing records or transforms what is done to it. Nor if its memory is not torch's
/// to resize, as that of a numpy array, whose holders a storage does not count. On a CPU, where new memory costs
/// a fault per page (docs/memory.md); a small gradient is not worth the checks of the operators in place.
inline bool may_overwrite(const Tensor& gradient, const Tensor& input) {
  constexpr size_t kLarge = size_t{1} << 20;
  const bool plain = gradient.is_cpu() && !at::isTensorSubclassLike(gradient) && gradient.has_storage() &&
                     !gradient._is_zerotensor() && !gradient.is_neg() && !gradient.is_inference();
  return plain && !at::GradMode::is_enabled() && gradient.use_count() == 1 && gradient.storage().use_count() == 1 &&
         gradient.storage().resizable() && gradient.is_non_overlapping_and_dense() &&
         gradient.strides() == input.strides() && gradient.nbytes() >= kLarge;
}

/// The kernels write running statistics; saved copies of them must notice.
inline void count_change(const OptionalTensor& tensor) {
  if (tensor) torch::autograd::increment_version(*tensor);
}

}  // namespace my_ops::autograd
