// From the arguments of `out` overloads, which passed their checks, to the tensors that kernels fill.
#pragma once

#include <ATen/core/Tensor.h>

namespace my_ops::plan {

/// Gives `out` the sizes and the memory layout of `like`, which is dense, if it has other sizes: it has no elements
/// then.
void resize_image(at::Tensor& out, const at::Tensor& like);

/// The same for a vector [C] beside `input`.
void resize_channels(at::Tensor& out, const at::Tensor& input);

/// What a kernel fills in memory laid out as that of `like`: `out` itself if it is, else a tensor of its own.
at::Tensor image_to_fill(const at::Tensor& out, const at::Tensor& like);

/// Copies what was filled into `out`, if it is not `out` itself.
void deliver(const at::Tensor& filled, at::Tensor& out);

}  // namespace my_ops::plan
