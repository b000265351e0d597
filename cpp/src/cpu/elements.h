// From tensors to typed memory: element types, per-channel vectors, scratch.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <memory>
#include <optional>

#include "cpu/capability.h"

namespace my_ops::cpu {

/// f(T{}) for the element type T of `dtype`, one of the four that plan/checks lets pass.
template <class F>
decltype(auto) visit_element(at::ScalarType dtype, F&& f) {
  switch (dtype) {
    case at::kDouble: return f(double{});
    case at::kFloat: return f(float{});
    case at::kBFloat16: return f(bfloat16{});
    default: TORCH_INTERNAL_ASSERT(dtype == at::kHalf); return f(float16{});
  }
}

template <class T>
const Kernels<T>& kernels_of() {
  const KernelTable& table = kernel_table();
  if constexpr (std::is_same_v<T, double>) return table.of_double;
  else if constexpr (std::is_same_v<T, float>) return table.of_float;
  else if constexpr (std::is_same_v<T, bfloat16>) return table.of_bfloat16;
  else return table.of_float16;
}

template <class T>
const T* read(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* write(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <class A>
constexpr at::ScalarType dtype_of() {
  return std::is_same_v<A, double> ? at::kDouble : at::kFloat;
}

/// A vector [C] to read in the accumulation type: the tensor's own memory if it fits, else a converted copy.
template <class A>
class ChannelVector {
 public:
  explicit ChannelVector(const std::optional<at::Tensor>& tensor) {
    if (!tensor) return;
    tensor_ = tensor->scalar_type() == dtype_of<A>() && tensor->is_contiguous() ? *tensor
                                                                              : tensor->to(dtype_of<A>()).contiguous();
    data_ = read<A>(tensor_);
  }
  explicit operator bool() const { return data_ != nullptr; }
  A operator[](int64_t c) const { return data_[c]; }
  A value_or(int64_t c, A absent) const { return data_ ? data_[c] : absent; }
  const A* data() const { return data_; }

 private:
  at::Tensor tensor_;
  const A* data_ = nullptr;
};

/// A vector [C] to write in the accumulation type; write_back() puts it into the tensor if that has another type.
template <class A>
class WritableChannelVector {
 public:
  explicit WritableChannelVector(const std::optional<at::Tensor>& tensor) {
    if (!tensor) return;
    target_ = *tensor;
    own_ = tensor->scalar_type() == dtype_of<A>() && tensor->is_contiguous();
    staged_ = own_ ? target_ : target_.to(dtype_of<A>(), /*non_blocking=*/false, /*copy=*/true).contiguous();
    data_ = write<A>(staged_);
  }
  explicit operator bool() const { return data_ != nullptr; }
  A& operator[](int64_t c) { return data_[c]; }
  void write_back() {
    if (data_ && !own_) target_.copy_(staged_);
  }

 private:
  at::Tensor target_;
  at::Tensor staged_;
  bool own_ = true;
  A* data_ = nullptr;
};

/// Uninitialised memory for the length of a call.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t size) : memory_(new A[size]) {}
  operator A*() { return memory_.get(); }

 private:
  std::unique_ptr<A[]> memory_;
};

}  // namespace my_ops::cpu
