// The convolution in front of a batch norm: its arguments besides tensors, their checks, and torch's operators for
// them.
//
// input: [N, C_in, ...], weight: [C_out, C_in / groups, ...], bias: [C_out]; one to three spatial dimensions.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace my_ops::plan {

struct Convolution {
  std::vector<int64_t> stride;
  std::vector<int64_t> padding;
  std::vector<int64_t> dilation;
  int64_t groups = 1;

  /// Differentiable, like everything here; blind to autocast, which must not choose another dtype for a second run.
  at::Tensor run(const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias) const;

  /// Gradients of input, weight and bias; undefined where output_mask is false.
  std::tuple<at::Tensor, at::Tensor, at::Tensor> gradients(const at::Tensor& grad_output, const at::Tensor& input,
                                                           const at::Tensor& weight,
                                                           std::array<bool, 3> output_mask) const;
};

/// What torch's convolution would leave to its kernels to find, or word without a name.
void check_convolution(const char* op, const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias, const Convolution& convolution);

}  // namespace my_ops::plan
