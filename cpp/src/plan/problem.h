// From tensors to a Shape. "Anything else is made dense in one place": here.
#pragma once

#include <ATen/core/Tensor.h>

#include "plan/shape.h"

namespace my_ops::plan {

/// The tensor itself if its memory is one of the two layouts, else a copy that is: channels last where the channels are
/// innermost (any rank, as in torch's channels_last and channels_last_3d), contiguous otherwise.
at::Tensor dense(const at::Tensor& input);

/// Whether the memory of `tensor` is laid out as that of `like`, which is dense. Same sizes.
bool laid_out_like(const at::Tensor& tensor, const at::Tensor& like);

/// `tensor` with the memory layout of `like`, which is dense; a copy only if needed. Same sizes.
at::Tensor dense_like(const at::Tensor& tensor, const at::Tensor& like);

/// The shape of a dense tensor. One value per row or one channel leave a choice of layout: S = 1 is channels last, and
/// a single channel is one run of M values.
Shape shape_of(const at::Tensor& dense);

/// The shape in which every image of a dense tensor has statistics of its own: (1, N*C, S) contiguous, a view, or N
/// problems of S rows, (N, S, C) channels last.
Shape instance_shape_of(const at::Tensor& dense);

/// float64 for float64, float32 for float32, bfloat16 and float16: what statistics are kept and sums are returned in.
at::ScalarType accumulation_dtype(at::ScalarType input);

}  // namespace my_ops::plan
