// Empty results of the right size, dtype and layout. Sizes may be symbolic.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "plan/problem.h"

namespace my_ops::meta {

inline at::Tensor image_like(const at::Tensor& input) { return at::empty_like(plan::dense(input)); }

inline at::Tensor per_channel(const at::Tensor& input, at::ScalarType dtype) {
  return at::empty_symint({input.sym_size(1)}, input.options().dtype(dtype));
}

inline at::Tensor statistic(const at::Tensor& input) {
  return per_channel(input, plan::accumulation_dtype(input.scalar_type()));
}

}  // namespace my_ops::meta
