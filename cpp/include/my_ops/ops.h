// The operators as typed functions: calls through torch's dispatcher, so autograd, autocast and every device work as
// they do from Python. Autograd kernels call them to reach the device, and derivatives to stay differentiable.
//
// N batch, C channels, S product of the spatial sizes, M = N*S values per channel. Images are [N, C, ...] of rank 2 and
// up, contiguous or channels last (anything else is copied), of float64, float32, bfloat16 or float16; results of their
// shape have their dtype and layout. The accumulation dtype is float64 for float64, else float32. Parameters and
// running statistics are [C], of the image's dtype or float32 (float64 for float64).
//
// A wrong argument throws c10::Error, `operator: expected argument ..., got ...`, before anything is written; one value
// per channel in training and an eps out of range throw c10::ValueError.
//
// *_out: the `out` overloads, which fill their last arguments, without an autograd graph, and return them.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>

#include "my_ops/version.h"

#pragma GCC visibility push(default)
namespace my_ops::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OutputMask = std::array<bool, 3>;

/// y = (x - mean) / sqrt(var + eps) * gamma + beta, with one mean and variance per channel.
///
/// If `training`, they are those of the batch, and each running statistic that is given moves towards them:
/// r = (1 - momentum) * r + momentum * batch, where the variance is the unbiased one. momentum nullopt is the
/// cumulative average, 1 / num_batches_tracked; the counter (int64, one element) is then required, and goes up by one
/// unless the batch is empty. If not, the running statistics are used, and nothing is written.
///
/// gamma 1, beta 0 and no running statistics where left out. Returns the output, and mean and 1 / sqrt(var + eps), [C]
/// of the accumulation dtype.
std::tuple<Tensor, Tensor, Tensor> batchnorm_forward(const Tensor& input, const OptionalTensor& gamma,
                                                     const OptionalTensor& beta, const OptionalTensor& running_mean,
                                                     const OptionalTensor& running_var, bool training,
                                                     std::optional<double> momentum, double eps,
                                                     const OptionalTensor& num_batches_tracked = std::nullopt);

/// Gradients of batchnorm_forward's output, of input, gamma and beta; undefined where `output_mask` is false.
///
/// With xhat = (x - mean) * invstd: dbeta = sum(dy), dgamma = sum(dy * xhat), and in training
/// dx = gamma * invstd * (dy - dbeta / M - xhat * dgamma / M), else dx = gamma * invstd * dy.
/// grad_gamma and grad_beta have gamma's dtype, the accumulation dtype without gamma.
std::tuple<Tensor, Tensor, Tensor> batchnorm_backward(const Tensor& grad_output, const Tensor& input,
                                                      const OptionalTensor& gamma, const Tensor& save_mean,
                                                      const Tensor& save_invstd, bool training = true,
                                                      OutputMask output_mask = {true, true, true});

/// batchnorm_forward into output, save_mean and save_invstd: of the results' dtypes and shapes, or without elements.
/// output may be input itself.
std::tuple<Tensor&, Tensor&, Tensor&> batchnorm_forward_out(
    const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
    const OptionalTensor& num_batches_tracked, Tensor& output, Tensor& save_mean, Tensor& save_invstd);

/// batchnorm_backward into grad_input, grad_gamma and grad_beta. Where `output_mask` is false the argument is left
/// alone.
std::tuple<Tensor&, Tensor&, Tensor&> batchnorm_backward_out(const Tensor& grad_output, const Tensor& input,
                                                             const OptionalTensor& gamma, const Tensor& save_mean,
                                                             const Tensor& save_invstd, bool training,
                                                             OutputMask output_mask, Tensor& grad_input,
                                                             Tensor& grad_gamma, Tensor& grad_beta);

/// mean and M2 = sum((x - mean)^2), [C] of the accumulation dtype, and count = M, int64 [1]: what of a batch has to be
/// known, in a form that parts can be merged in.
std::tuple<Tensor, Tensor, Tensor> batchnorm_stats(const Tensor& input);

/// Merges R parts: mean [R, C], m2 [R, C], count [R], in their order. Updates the running statistics as
/// batchnorm_forward does. Returns mean [C], 1 / sqrt(M2 / count + eps) [C] and the total count [1].
std::tuple<Tensor, Tensor, Tensor> batchnorm_gather_stats(const Tensor& mean, const Tensor& m2, const Tensor& count,
                                                          const OptionalTensor& running_mean,
                                                          const OptionalTensor& running_var,
                                                          std::optional<double> momentum, double eps,
                                                          const OptionalTensor& num_batches_tracked = std::nullopt);

/// y = (x - mean) * invstd * gamma + beta, with mean and invstd [C] of the accumulation dtype.
Tensor batchnorm_apply(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean,
                       const Tensor& invstd);

/// batchnorm_apply into `out`, which may be input itself.
Tensor& batchnorm_apply_out(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                            const Tensor& mean, const Tensor& invstd, Tensor& out);

/// sum_dy = sum(dy) and sum_dy_xhat = sum(dy * xhat), [C] of the accumulation dtype: parts of a batch just add up.
std::tuple<Tensor, Tensor> batchnorm_backward_reduce(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                                     const Tensor& invstd);

/// dx of training from the sums over the whole batch of `count` [1] values per channel.
Tensor batchnorm_backward_apply(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                                const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                                const Tensor& sum_dy_xhat, const Tensor& count);

/// batchnorm_backward_apply into `out`, which may be grad_output or input itself.
Tensor& batchnorm_backward_apply_out(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                                     const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                                     const Tensor& sum_dy_xhat, const Tensor& count, Tensor& out);

/// batchnorm_act_apply where mean, invstd and the total `count` [1] are those of a batch that is spread over the
/// `group_size` processes of the torch.distributed group `group_name`: its gradient takes in the other processes'
/// parts. Returns the output; without residual and activation it is that of batchnorm_apply.
Tensor sync_batchnorm_apply(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                            const Tensor& mean, const Tensor& invstd, const Tensor& count, int64_t group_size,
                            std::string group_name, const OptionalTensor& residual = std::nullopt,
                            std::string_view activation = "identity", double slope = 0);

/// [R, ...]: the parts [...] of all R = `group_size` processes, in the order of the ranks.
Tensor all_gather(const Tensor& part, int64_t group_size, std::string group_name);

/// [...]: the sum over all processes of their parts [R, ...] for this one. The derivative of all_gather.
Tensor reduce_scatter(const Tensor& parts, int64_t group_size, std::string group_name);

/// Batch normalization of every image by itself, with its own mean and variance per channel. Running statistics move
/// towards the means over N. Returns the output, and mean and 1 / sqrt(var + eps), [N, C] of the accumulation dtype.
std::tuple<Tensor, Tensor, Tensor> instancenorm_forward(const Tensor& input, const OptionalTensor& gamma,
                                                        const OptionalTensor& beta, const OptionalTensor& running_mean,
                                                        const OptionalTensor& running_var, double momentum, double eps);

/// Gradients of instancenorm_forward's output, as batchnorm_backward gives them.
std::tuple<Tensor, Tensor, Tensor> instancenorm_backward(const Tensor& grad_output, const Tensor& input,
                                                         const OptionalTensor& gamma, const Tensor& save_mean,
                                                         const Tensor& save_invstd,
                                                         OutputMask output_mask = {true, true, true});

/// (output, save_mean, save_invstd, mask): output = act(batchnorm(input) + residual), in the passes of batch norm.
/// activation: identity, relu, leaky_relu (slope: its factor), relu6, elu (slope: its alpha), silu or gelu_tanh.
/// residual: of the input's shape and dtype. mask: uint8, a bit per value in memory order that tells whether it is
/// positive (and less than 6 for relu6), for relu, leaky_relu and relu6 with a residual; else empty. The rest is as in
/// batchnorm_forward.
std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_forward(
    const Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma, const OptionalTensor& beta,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
    std::optional<double> momentum, double eps, std::string_view activation, double slope,
    const OptionalTensor& num_batches_tracked);

/// The gradients of input, residual, gamma and beta of batchnorm_act_forward; undefined where output_mask is false. Of
/// relu, leaky_relu and relu6 behind a residual the mask is needed instead of the residual.
std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_backward(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual, const OptionalTensor& mask,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd,
    bool training, std::string_view activation, double slope, std::array<bool, 4> output_mask);

/// The same, one of the images over grad_output: the gradient of residual if output_mask[1], else that of input. The
/// other three are returned (input's undefined if it is that one). grad_output has memory of its own. Has no
/// derivatives.
std::tuple<Tensor, Tensor, Tensor> batchnorm_act_backward_(Tensor& grad_output, const Tensor& input,
                                                           const OptionalTensor& residual, const OptionalTensor& mask,
                                                           const OptionalTensor& gamma, const OptionalTensor& beta,
                                                           const Tensor& save_mean, const Tensor& save_invstd,
                                                           bool training, std::string_view activation, double slope,
                                                           std::array<bool, 4> output_mask);

/// (output, mask) of batchnorm_act_forward from given statistics.
std::tuple<Tensor, Tensor> batchnorm_act_apply(const Tensor& input, const OptionalTensor& residual,
                                               const OptionalTensor& gamma, const OptionalTensor& beta,
                                               const Tensor& mean, const Tensor& invstd, std::string_view activation,
                                               double slope);

/// The two sums of batchnorm_backward_reduce, [C] each, of dz = dy * act'(z) in the place of dy.
std::tuple<Tensor, Tensor> batchnorm_act_backward_reduce(const Tensor& grad_output, const Tensor& input,
                                                         const OptionalTensor& residual, const OptionalTensor& mask,
                                                         const OptionalTensor& gamma, const OptionalTensor& beta,
                                                         const Tensor& mean, const Tensor& invstd,
                                                         std::string_view activation, double slope);

/// The gradients of input and residual from the sums over the whole batch; count: int64, [1], its values per channel.
std::tuple<Tensor, Tensor> batchnorm_act_backward_apply(const Tensor& grad_output, const Tensor& input,
                                                        const OptionalTensor& residual, const OptionalTensor& mask,
                                                        const OptionalTensor& gamma, const OptionalTensor& beta,
                                                        const Tensor& mean, const Tensor& invstd,
                                                        std::string_view activation, double slope, const Tensor& sum_dy,
                                                        const Tensor& sum_dy_xhat, const Tensor& count);

/// Convolution, then batch norm, then an activation (identity, relu, leaky_relu, relu6, elu, silu or gelu_tanh; slope
/// as in batchnorm_act_forward), as one operator, which keeps nothing between them for the backward pass.
///
/// input [N, C_in, ...] with one to three spatial dimensions, weight [C_out, C_in / groups, ...], bias [C_out], all of
/// one dtype; stride, padding and dilation with a number per spatial dimension. The rest is as in batchnorm_forward, of
/// the C_out channels of the convolution's output.
std::tuple<Tensor, Tensor, Tensor> conv_batchnorm_forward(
    const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& gamma,
    const OptionalTensor& beta, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, bool training,
    std::optional<double> momentum, double eps, const OptionalTensor& num_batches_tracked = std::nullopt,
    std::string_view activation = "identity", double slope = 0);

/// Which of the gradients of input, weight, bias, gamma and beta are wanted.
using ConvOutputMask = std::array<bool, 5>;

/// The gradients of conv_batchnorm_forward, which runs the convolution anew; undefined where output_mask is false.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_batchnorm_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, bool training = true,
    std::string_view activation = "identity", double slope = 0,
    ConvOutputMask output_mask = {true, true, true, true, true});

/// batchnorm_act_forward over its input: output takes the place of input. Identity, leaky_relu or elu with slope > 0.
/// Returns save_mean, save_invstd, and kept [k] and kept_input [N, k, ...]: the channels whose input the output does
/// not give back, and their input.
std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_forward_(
    Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
    std::string_view activation, double slope, const OptionalTensor& num_batches_tracked);

/// The gradients of input, gamma and beta of batchnorm_act_forward_, from its output and its other results.
std::tuple<Tensor, Tensor, Tensor> batchnorm_act_backward_from_output(
    const Tensor& grad_output, const Tensor& output, const Tensor& kept, const Tensor& kept_input,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd,
    bool training, std::string_view activation, double slope, OutputMask output_mask);

/// batchnorm_act_forward_ from given statistics: kept and kept_input. Has no derivatives.
std::tuple<Tensor, Tensor> batchnorm_act_apply_(Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                                                const Tensor& mean, const Tensor& invstd, std::string_view activation,
                                                double slope);

/// input - mean, computed back from the output of batchnorm_act_apply_ and what it returned, in the output's dtype. Has
/// no derivatives.
Tensor batchnorm_act_recover(const Tensor& output, const Tensor& kept, const Tensor& kept_input,
                             const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean,
                             const Tensor& invstd, std::string_view activation, double slope);

/// batchnorm_act_forward_ in training, of a batch that is spread over the `group_size` processes of the
/// torch.distributed group `group_name`. Returns mean, invstd and the total count [1] of the whole batch, and kept and
/// kept_input of this part.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sync_batchnorm_act_forward_(
    Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, std::optional<double> momentum, double eps, std::string_view activation,
    double slope, const OptionalTensor& num_batches_tracked, int64_t group_size, std::string group_name);

/// conv_batchnorm_forward in training, of a batch that is spread over the `group_size` processes of the
/// torch.distributed group `group_name`. Returns the output of this part, and mean, invstd and the total count [1] of
/// the whole batch.
std::tuple<Tensor, Tensor, Tensor, Tensor> sync_conv_batchnorm_forward(
    const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& gamma,
    const OptionalTensor& beta, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
    std::optional<double> momentum, double eps, const OptionalTensor& num_batches_tracked, std::string_view activation,
    double slope, int64_t group_size, std::string group_name);

/// The gradients of sync_conv_batchnorm_forward: of input the whole one, of the parameters this part's.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sync_conv_batchnorm_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean, const Tensor& invstd,
    const Tensor& count, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
    std::string_view activation, double slope, int64_t group_size, std::string group_name, ConvOutputMask output_mask);

}  // namespace my_ops::ops
#pragma GCC visibility pop
