#include "plan/problem.h"

namespace my_ops::plan {
namespace {

/// Rows of one value per channel, one behind the other: strides C*S, 1, ..., C*D, C.
bool is_channels_last(const at::Tensor& tensor) {
  const auto sizes = tensor.sym_sizes();
  const auto strides = tensor.sym_strides();
  c10::SymInt expected = 1;
  const auto fits = [&](int64_t d) {
    const bool fit = sizes[d] == 1 || strides[d] == expected;
    expected = expected * sizes[d];
    return fit;
  };
  if (!fits(1)) return false;
  for (int64_t d = tensor.dim() - 1; d > 1; --d) {
    if (!fits(d)) return false;
  }
  return fits(0);
}

at::Tensor to_channels_last(const at::Tensor& tensor) { return tensor.movedim(1, -1).contiguous().movedim(-1, 1); }

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
  if (input.is_contiguous() || is_channels_last(input)) return input;
  return channels_innermost(input) ? to_channels_last(input) : input.contiguous();
}

bool laid_out_like(const at::Tensor& tensor, const at::Tensor& like) {
  return like.is_contiguous() ? tensor.is_contiguous() : is_channels_last(tensor);
}

at::Tensor dense_like(const at::Tensor& tensor, const at::Tensor& like) {
  if (laid_out_like(tensor, like)) return tensor;
  return like.is_contiguous() ? tensor.contiguous() : to_channels_last(tensor);
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

Shape instance_shape_of(const at::Tensor& dense) {
  const int64_t n = dense.size(0);
  const int64_t c = dense.size(1);
  int64_t s = 1;
  for (int64_t d = 2; d < dense.dim(); ++d) s *= dense.size(d);
  if (dense.is_contiguous()) return {1, n * c, s, Layout::contiguous};
  return {n, c, s, Layout::channels_last};
}

at::ScalarType accumulation_dtype(at::ScalarType input) { return input == at::kDouble ? at::kDouble : at::kFloat; }

}  // namespace my_ops::plan
