// The gradients of convolution and synchronized batch norm as one.
#pragma once

#include <tuple>

#include "plan/convolution.h"
#include "sync/phases.h"

namespace my_ops::sync {

/// convolution.run and convolution.gradients, connected: of no images torch knows no second derivatives, and where one
/// is undefined this rank would not answer those that wait for it. Here they are zeros.
at::Tensor run(const plan::Convolution& convolution, const at::Tensor& input, const at::Tensor& weight,
               const OptionalTensor& bias);
std::tuple<at::Tensor, at::Tensor, at::Tensor> gradients(const plan::Convolution& convolution, const at::Tensor& dz,
                                                         const at::Tensor& input, const at::Tensor& weight,
                                                         std::array<bool, 3> wanted);

/// Of input, weight, bias, gamma and beta, for which the convolution is run anew. Differentiable.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> conv_gradients(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
    const OptionalTensor& gamma, const OptionalTensor& beta, const at::Tensor& mean, const at::Tensor& invstd,
    const at::Tensor& count, const plan::Convolution& convolution, const Act& act, const Group& group,
    ops::ConvOutputMask wanted);

}  // namespace my_ops::sync
