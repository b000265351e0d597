// Every check of every operator, with one wording: `operator: expected argument ..., got ...`. Symbolic sizes are
// understood, so CPU, CUDA and Meta kernels call the same functions, first of all.
//
// RuntimeError, or ValueError where torch.nn.functional.batch_norm raises that: one value per channel, and eps.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>

#include "plan/activation.h"

namespace my_ops::plan {

using OptionalTensor = std::optional<at::Tensor>;

void check_forward(const at::Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                   const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                   std::optional<double> momentum, double eps, const OptionalTensor& num_batches_tracked);

void check_backward(const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& gamma,
                    const at::Tensor& save_mean, const at::Tensor& save_invstd);

void check_stats(const at::Tensor& input);

void check_gather_stats(const at::Tensor& mean, const at::Tensor& m2, const at::Tensor& count,
                        const OptionalTensor& running_mean, const OptionalTensor& running_var,
                        std::optional<double> momentum, double eps, const OptionalTensor& num_batches_tracked);

void check_apply(const at::Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                 const at::Tensor& mean, const at::Tensor& invstd);

void check_backward_reduce(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& mean,
                           const at::Tensor& invstd);

void check_backward_apply(const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& gamma,
                          const at::Tensor& mean, const at::Tensor& invstd, const at::Tensor& sum_dy,
                          const at::Tensor& sum_dy_xhat, const at::Tensor& count);

/// That there is more than one value per channel is known once all ranks have answered.
void check_sync_forward(const char* op, const at::Tensor& input, const OptionalTensor& residual,
                        const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
                        const OptionalTensor& running_var, std::optional<double> momentum, double eps,
                        const OptionalTensor& num_batches_tracked, int64_t group_size);

void check_instance_forward(const at::Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                            const OptionalTensor& running_mean, const OptionalTensor& running_var, double eps);

void check_instance_backward(const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& gamma,
                             const at::Tensor& save_mean, const at::Tensor& save_invstd);

/// The activation of that name; ValueError if there is none.
Activation activation_named(const char* op, std::string_view name);

std::string_view name_of(Activation activation);

// The operators with an activation. A mask without elements counts as none.

void check_act_forward(const at::Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma,
                       const OptionalTensor& beta, const OptionalTensor& running_mean,
                       const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
                       const OptionalTensor& num_batches_tracked);

void check_act_backward(const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& residual,
                        const OptionalTensor& mask, const OptionalTensor& gamma, const OptionalTensor& beta,
                        const at::Tensor& save_mean, const at::Tensor& save_invstd, Activation activation);

/// As it, and that grad_output has memory of its own.
void check_act_backward_in_place(const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& residual,
                                 const OptionalTensor& mask, const OptionalTensor& gamma, const OptionalTensor& beta,
                                 const at::Tensor& save_mean, const at::Tensor& save_invstd, Activation activation);

void check_act_apply(const at::Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma,
                     const OptionalTensor& beta, const at::Tensor& mean, const at::Tensor& invstd);

void check_act_backward_reduce(const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& residual,
                               const OptionalTensor& mask, const OptionalTensor& gamma, const OptionalTensor& beta,
                               const at::Tensor& mean, const at::Tensor& invstd, Activation activation);

void check_act_backward_apply(const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& residual,
                              const OptionalTensor& mask, const OptionalTensor& gamma, const OptionalTensor& beta,
                              const at::Tensor& mean, const at::Tensor& invstd, Activation activation,
                              const at::Tensor& sum_dy, const at::Tensor& sum_dy_xhat, const at::Tensor& count);

/// The activation has an inverse (else ValueError), and input memory of its own for each value.
void check_act_forward_in_place(const at::Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                                const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                                std::optional<double> momentum, double eps, Activation activation, double slope,
                                const OptionalTensor& num_batches_tracked);

/// As it and check_sync_forward do.
void check_sync_act_forward_in_place(const at::Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                                     const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                     std::optional<double> momentum, double eps, Activation activation, double slope,
                                     const OptionalTensor& num_batches_tracked, int64_t group_size);

void check_act_apply_in_place(const at::Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                              const at::Tensor& mean, const at::Tensor& invstd, Activation activation, double slope);

void check_act_recover(const at::Tensor& output, const at::Tensor& kept, const at::Tensor& kept_input,
                       const OptionalTensor& gamma, const OptionalTensor& beta, const at::Tensor& mean,
                       const at::Tensor& invstd, Activation activation, double slope);

void check_act_backward_from_output(const at::Tensor& grad_output, const at::Tensor& output, const at::Tensor& kept,
                                    const at::Tensor& kept_input, const OptionalTensor& gamma,
                                    const OptionalTensor& beta, const at::Tensor& save_mean,
                                    const at::Tensor& save_invstd, Activation activation, double slope);

// The arguments of the `out` overloads that are filled: behind the checks of the plain operator, before anything is
// written. Each has the result's dtype and its shape, or no elements (see outputs.h), and memory of its own. Only
// results of the input's shape may share it: with an image that is read, element for element.

void check_forward_out(const at::Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                       const OptionalTensor& running_mean, const OptionalTensor& running_var,
                       const OptionalTensor& num_batches_tracked, const at::Tensor& output, const at::Tensor& save_mean,
                       const at::Tensor& save_invstd);

void check_backward_out(const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& gamma,
                        const at::Tensor& save_mean, const at::Tensor& save_invstd, std::array<bool, 3> output_mask,
                        const at::Tensor& grad_input, const at::Tensor& grad_gamma, const at::Tensor& grad_beta);

void check_apply_out(const at::Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                     const at::Tensor& mean, const at::Tensor& invstd, const at::Tensor& out);

void check_backward_apply_out(const at::Tensor& grad_output, const at::Tensor& input, const OptionalTensor& gamma,
                              const at::Tensor& mean, const at::Tensor& invstd, const at::Tensor& sum_dy,
                              const at::Tensor& sum_dy_xhat, const at::Tensor& count, const at::Tensor& out);

/// Outside of inference mode torch refuses changes of inference tensors, but only once they have happened.
void check_written(const char* op, const char* name, const OptionalTensor& tensor);

/// Running statistics are state: written by the kernel when training, unknown to autograd in reverse and in forward
/// mode.
void check_running_statistics(const char* op, const OptionalTensor& running_mean, const OptionalTensor& running_var,
                              bool training, const OptionalTensor& num_batches_tracked);

}  // namespace my_ops::plan
