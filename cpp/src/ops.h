// Typed calls through the dispatcher: each lands in the kernel of the innermost dispatch key still enabled, so autograd
// kernels call the same functions to reach the device, and derivatives call them to stay differentiable.
//
// *_out: the `out` overloads, which fill their last arguments and return them.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

namespace my_ops::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OutputMask = std::array<bool, 3>;

std::tuple<Tensor, Tensor, Tensor> batchnorm_forward(const Tensor& input, const OptionalTensor& gamma,
                                                     const OptionalTensor& beta, const OptionalTensor& running_mean,
                                                     const OptionalTensor& running_var, bool training,
                                                     std::optional<double> momentum, double eps,
                                                     const OptionalTensor& num_batches_tracked);

std::tuple<Tensor, Tensor, Tensor> batchnorm_backward(const Tensor& grad_output, const Tensor& input,
                                                      const OptionalTensor& gamma, const Tensor& save_mean,
                                                      const Tensor& save_invstd, bool training, OutputMask output_mask);

std::tuple<Tensor&, Tensor&, Tensor&> batchnorm_forward_out(
    const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
    const OptionalTensor& num_batches_tracked, Tensor& output, Tensor& save_mean, Tensor& save_invstd);

std::tuple<Tensor&, Tensor&, Tensor&> batchnorm_backward_out(const Tensor& grad_output, const Tensor& input,
                                                             const OptionalTensor& gamma, const Tensor& save_mean,
                                                             const Tensor& save_invstd, bool training,
                                                             OutputMask output_mask, Tensor& grad_input,
                                                             Tensor& grad_gamma, Tensor& grad_beta);

std::tuple<Tensor, Tensor, Tensor> batchnorm_stats(const Tensor& input);

std::tuple<Tensor, Tensor, Tensor> batchnorm_gather_stats(const Tensor& mean, const Tensor& m2, const Tensor& count,
                                                          const OptionalTensor& running_mean,
                                                          const OptionalTensor& running_var,
                                                          std::optional<double> momentum, double eps,
                                                          const OptionalTensor& num_batches_tracked);

Tensor batchnorm_apply(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean,
                       const Tensor& invstd);

Tensor& batchnorm_apply_out(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                            const Tensor& mean, const Tensor& invstd, Tensor& out);

std::tuple<Tensor, Tensor> batchnorm_backward_reduce(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                                     const Tensor& invstd);

Tensor batchnorm_backward_apply(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                                const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                                const Tensor& sum_dy_xhat, const Tensor& count);

Tensor& batchnorm_backward_apply_out(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                                     const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                                     const Tensor& sum_dy_xhat, const Tensor& count, Tensor& out);

// Batch normalization, a residual and an activation.

std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_forward(
    const Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma, const OptionalTensor& beta,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
    std::optional<double> momentum, double eps, std::string_view activation, double slope,
    const OptionalTensor& num_batches_tracked);

std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_backward(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual, const OptionalTensor& mask,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd,
    bool training, std::string_view activation, double slope, std::array<bool, 4> output_mask);

std::tuple<Tensor, Tensor> batchnorm_act_apply(const Tensor& input, const OptionalTensor& residual,
                                               const OptionalTensor& gamma, const OptionalTensor& beta,
                                               const Tensor& mean, const Tensor& invstd, std::string_view activation,
                                               double slope);

std::tuple<Tensor, Tensor> batchnorm_act_backward_reduce(const Tensor& grad_output, const Tensor& input,
                                                         const OptionalTensor& residual, const OptionalTensor& mask,
                                                         const OptionalTensor& gamma, const OptionalTensor& beta,
                                                         const Tensor& mean, const Tensor& invstd,
                                                         std::string_view activation, double slope);

std::tuple<Tensor, Tensor> batchnorm_act_backward_apply(const Tensor& grad_output, const Tensor& input,
                                                        const OptionalTensor& residual, const OptionalTensor& mask,
                                                        const OptionalTensor& gamma, const OptionalTensor& beta,
                                                        const Tensor& mean, const Tensor& invstd,
                                                        std::string_view activation, double slope, const Tensor& sum_dy,
                                                        const Tensor& sum_dy_xhat, const Tensor& count);

std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_forward_(
    Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
    std::string_view activation, double slope, const OptionalTensor& num_batches_tracked);

std::tuple<Tensor, Tensor, Tensor> batchnorm_act_backward_from_output(
    const Tensor& grad_output, const Tensor& output, const Tensor& kept, const Tensor& kept_input,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd,
    bool training, std::string_view activation, double slope, OutputMask output_mask);

}  // namespace my_ops::ops
