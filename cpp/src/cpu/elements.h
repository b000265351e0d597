// From tensors to typed memory: element types, per-channel vectors, scratch.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/full.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

#include <initializer_list>
#include <memory>
#include <new>
#include <optional>

#include "cpu/capability.h"
#include "plan/problem.h"

namespace my_ops::cpu {

/// f(T{}) for the element type T of `dtype`, one of the four that plan/checks lets pass.
template <class F>
decltype(auto) visit_element(at::ScalarType dtype, F&& f) {
  switch (dtype) {
    case at::kDouble:
      return f(double{});
    case at::kFloat:
      return f(float{});
    case at::kBFloat16:
      return f(bfloat16{});
    default:
      TORCH_INTERNAL_ASSERT(dtype == at::kHalf);
      return f(float16{});
  }
}

template <class T>
const Kernels<T>& kernels_of() {
  const KernelTable& table = kernel_table();
  if constexpr (std::is_same_v<T, double>)
    return table.of_double;
  else if constexpr (std::is_same_v<T, float>)
    return table.of_float;
  else if constexpr (std::is_same_v<T, bfloat16>)
    return table.of_bfloat16;
  else
    return table.of_float16;
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

template <class A>
bool fits(const at::Tensor& tensor) {
  return tensor.scalar_type() == dtype_of<A>() && tensor.is_contiguous();
}

/// A vector [C] to read in the accumulation type: the tensor's own memory if it fits, else a converted copy.
template <class A>
class ChannelVector {
 public:
  explicit ChannelVector(const at::Tensor& tensor)
      : tensor_(fits<A>(tensor) ? tensor : tensor.to(dtype_of<A>()).contiguous()) {}

  /// All `absent` if there is no tensor.
  ChannelVector(const std::optional<at::Tensor>& tensor, int64_t channels, A absent)
      : ChannelVector(tensor ? *tensor : at::full({channels}, absent, dtype_of<A>())) {}

  const A* data() const { return read<A>(tensor_); }

 private:
  at::Tensor tensor_;
};

/// A vector [C] to write in the accumulation type, or none: the tensor's own memory if it fits and is not to be staged,
/// else a copy that write_back() rounds into the tensor. That takes no memory, so it cannot fail: state changes as a
/// whole or not at all.
template <class A>
class WritableChannelVector {
 public:
  explicit WritableChannelVector(const std::optional<at::Tensor>& tensor, bool staged = false) {
    if (!tensor) return;
    target_ = *tensor;
    memory_ = target_.mutable_data_ptr();
    const bool direct = fits<A>(target_) && !staged;
    staged_ = direct ? target_ : target_.to(dtype_of<A>(), /*non_blocking=*/false, /*copy=*/true).contiguous();
  }

  A* data() const { return staged_.defined() ? write<A>(staged_) : nullptr; }

  void write_back() const {
    if (!staged_.defined() || staged_.is_same(target_)) return;
    switch (target_.scalar_type()) {
      case at::kBFloat16:
        return round_into<c10::BFloat16>();
      case at::kHalf:
        return round_into<c10::Half>();
      default:
        return round_into<A>();
    }
  }

 private:
  template <class T>
  void round_into() const {
    const A* values = read<A>(staged_);
    const int64_t stride = target_.stride(0);
    for (int64_t c = 0; c < staged_.size(0); ++c) static_cast<T*>(memory_)[c * stride] = static_cast<T>(values[c]);
  }

  at::Tensor target_;
  at::Tensor staged_;
  void* memory_ = nullptr;  // of the target
};

// Results are made directly: a trip through the dispatcher for each costs more than a tiny normalization.

/// Uninitialised, with the sizes, strides and dtype of a dense tensor; in huge pages where it is large.
at::Tensor empty_image(const at::Tensor& like);

/// Uninitialised, [C], of the accumulation dtype of `input`.
inline at::Tensor empty_statistic(const at::Tensor& input) {
  return at::detail::empty_cpu({input.size(1)}, plan::accumulation_dtype(input.scalar_type()));
}

/// What a kernel fills for a result [C]: `out` itself if that is dense and of this dtype, else a tensor of its own.
inline at::Tensor statistic_to_fill(const at::Tensor& out, at::ScalarType dtype) {
  const bool direct = out.scalar_type() == dtype && out.is_contiguous();
  return direct ? out : at::Tensor(at::detail::empty_cpu({out.size(0)}, dtype));
}

/// Bytes that a pass may read and write in all before its result is written past the cache.
int64_t cached_bytes();

/// Whether a pass that reads images of the output's size from these addresses (nullptr: none) writes it past the cache:
/// unless all of them fit with it, so that it is still there for its reader, or it takes the place of one of them,
/// which is in the cache then.
bool streams(const at::Tensor& output, std::initializer_list<const void*> read);

/// Uninitialised memory for the length of a call.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t size) : memory_(new (std::nothrow) A[size]) {
    TORCH_CHECK(memory_, "my_ops: expected ", size * sizeof(A), " bytes of memory for the length of a call, got none");
  }
  operator A*() { return memory_.get(); }

 private:
  std::unique_ptr<A[]> memory_;
};

}  // namespace my_ops::cpu
