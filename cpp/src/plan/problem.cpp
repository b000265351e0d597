#include "plan/problem.h"

namespace my_ops::plan {
namespace {

/// The channels moved behind the other dimensions: contiguous exactly if the tensor is channels last.
at::Tensor channels_behind(const at::Tensor& tensor) { return tensor.movedim(1, -1); }

at::Tensor to_channels_last(const at::Tensor& tensor) {
  return channels_behind(tensor).contiguous().movedim(-1, 1);
}

/// Whether neighbours in memory are neighbours along the channels.
bool channels_innermost(const at::Tensor& tensor) {
  if (tensor.dim() < 3 || tensor.sym_stride(1) != 1) return false;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (d != 1 && tensor.sym_size(d) != 1 && tensor.sym_stride(d) < 2) return false;
  }
  return true;
}

}  // namespace

at::Tensor dense(const at::Tensor& input) {
  if (input.is_contiguous()) return input;
  if (!channels_innermost(input)) return input.contiguous();
  return channels_behind(input).is_contiguous() ? input : to_channels_last(input);
}

at::Tensor dense_like(const at::Tensor& tensor, const at::Tensor& like) {
  if (like.is_contiguous()) return tensor.contiguous();
  return channels_behind(tensor).is_contiguous() ? tensor : to_channels_last(tensor);
}

Shape shape_of(const at::Tensor& dense) {
  const int64_t n = dense.size(0);
  const int64_t c = dense.size(1);
  int64_t s = 1;
  for (int64_t d = 2; d < dense.dim(); ++d) s *= dense.size(d);
  if (c == 1) return {1, 1, n * s, Layout::contiguous};
  if (s == 1 || !dense.is_contiguous()) return {n, c, s, Layout::channels_last};
  return {n, c, s, Layout::contiguous};
}

at::ScalarType accumulation_dtype(at::ScalarType input) { return input == at::kDouble ? at::kDouble : at::kFloat; }

}  // namespace my_ops::plan
