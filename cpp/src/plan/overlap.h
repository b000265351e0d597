// Which tensors share memory, element by element.
#pragma once

#include <ATen/core/Tensor.h>

namespace my_ops::plan {

/// Every element lies where the other tensor has the same element.
bool same_memory(const at::Tensor& a, const at::Tensor& b);

/// Some element lies where the other tensor has one. Exact for tensors with the same strides (halves or columns of one
/// tensor); of others, the ranges of addresses are compared. Undefined tensors overlap nothing.
bool overlap(const at::Tensor& a, const at::Tensor& b);

/// Two elements of the tensor lie in the same place, or may do so.
bool overlaps_itself(const at::Tensor& tensor);

}  // namespace my_ops::plan
