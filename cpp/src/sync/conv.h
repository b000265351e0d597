// The gradients of convolution and synchronized batch norm as one.
#pragma once

#include <tuple>

#include "plan/convolution.h"
#include "sync/phases.h"

namespace my_ops::sync {

/// Of input, weight, bias, gamma and beta, for which the convolution is run anew. Differentiable.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> conv_gradients(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
    const OptionalTensor& gamma, const OptionalTensor& beta, const at::Tensor& mean, const at::Tensor& invstd,
    const at::Tensor& count, const plan::Convolution& convolution, const Act& act, const Group& group,
    ops::ConvOutputMask wanted);

}  // namespace my_ops::sync
