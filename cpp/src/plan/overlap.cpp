#include "plan/overlap.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

namespace my_ops::plan {
namespace {

/// A dimension of a strided tensor; `inner`: elements from the first to the last one along all smaller strides.
struct Step {
  int64_t size;
  int64_t stride;
  int64_t inner;
};

/// The dimensions of more than one element, largest stride first; of two tensors with the same strides, with the larger
/// size.
std::vector<Step> steps_of(const at::Tensor& a, const at::Tensor& b) {
  std::vector<Step> steps;
  for (int64_t d = 0; d < a.dim(); ++d) {
    const int64_t size = std::max(a.size(d), b.size(d));
    if (size > 1) steps.push_back({size, a.stride(d), 0});
  }
  std::sort(steps.begin(), steps.end(), [](const Step& s, const Step& t) { return s.stride > t.stride; });
  for (size_t i = steps.size(); i-- > 1;) {
    steps[i - 1].inner = steps[i].inner + (steps[i].size - 1) * steps[i].stride;
  }
  return steps;
}

/// Whether distance = sum of d_i * stride_i for some |d_i| < size_i, from step i on. The smaller strides reach less
/// than one stride (where they do not, the answer is true), so that two multiples of it come into question.
bool meets(const std::vector<Step>& steps, size_t i, int64_t distance) {
  if (i == steps.size()) return distance == 0;
  const Step& step = steps[i];
  if (step.stride <= step.inner) return true;
  const int64_t below = (distance < 0 ? distance - step.stride + 1 : distance) / step.stride;
  for (const int64_t multiple : {below, below + 1}) {
    if (std::abs(multiple) < step.size && meets(steps, i + 1, distance - multiple * step.stride)) return true;
  }
  return false;
}

int64_t bytes_spanned(const at::Tensor& tensor) {
  int64_t last = 0;
  for (int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  return (last + 1) * static_cast<int64_t>(tensor.element_size());
}

}  // namespace

bool same_memory(const at::Tensor& a, const at::Tensor& b) {
  return a.const_data_ptr() == b.const_data_ptr() && a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         a.strides() == b.strides();
}

bool overlap(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined() || !b.defined() || a.numel() == 0 || b.numel() == 0) return false;
  const auto* a_begin = static_cast<const char*>(a.const_data_ptr());
  const auto* b_begin = static_cast<const char*>(b.const_data_ptr());
  if (b_begin >= a_begin + bytes_spanned(a) || a_begin >= b_begin + bytes_spanned(b)) return false;
  const auto size = static_cast<int64_t>(a.element_size());
  const bool alike = a.strides() == b.strides() && a.element_size() == b.element_size();
  if (!alike || (b_begin - a_begin) % size != 0) return true;
  return meets(steps_of(a, b), 0, (b_begin - a_begin) / size);
}

bool overlaps_itself(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return false;
  const auto steps = steps_of(tensor, tensor);
  return std::any_of(steps.begin(), steps.end(), [](const Step& step) { return step.stride <= step.inner; });
}

}  // namespace my_ops::plan
