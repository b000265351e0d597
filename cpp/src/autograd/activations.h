// Activations and their backward passes in differentiable tensor operations, and the bits of a mask as a tensor.
#pragma once

#include <ATen/core/Tensor.h>

#include "plan/activation.h"

namespace my_ops::autograd {

/// dy * act'(z), as a function of both.
at::Tensor activation_backward(const at::Tensor& dy, const at::Tensor& z, plan::Activation activation, double slope);

/// dy where the bit of the element is set, else slope * dy (relu: 0). The mask is that of an output laid out as
/// `input`.
at::Tensor masked_backward(const at::Tensor& dy, const at::Tensor& mask, const at::Tensor& input,
                           plan::Activation activation, double slope);

}  // namespace my_ops::autograd
