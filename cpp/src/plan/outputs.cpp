#include "plan/outputs.h"

#include <ATen/ops/empty_like.h>

#include "plan/problem.h"

namespace my_ops::plan {

void resize_image(at::Tensor& out, const at::Tensor& like) {
  if (out.dim() == like.dim() && out.sym_sizes() == like.sym_sizes()) return;
  out.resize__symint(like.sym_sizes());
  out.as_strided__symint(like.sym_sizes(), like.sym_strides());
}

void resize_channels(at::Tensor& out, const at::Tensor& input) {
  if (out.dim() != 1 || out.sym_size(0) != input.sym_size(1)) out.resize__symint({input.sym_size(1)});
}

at::Tensor image_to_fill(const at::Tensor& out, const at::Tensor& like) {
  return laid_out_like(out, like) ? out : at::empty_like(like);
}

void deliver(const at::Tensor& filled, at::Tensor& out) {
  if (!filled.is_same(out)) out.copy_(filled);
}

}  // namespace my_ops::plan
