#include "my_ops/ops.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <utility>

namespace my_ops::ops {
namespace {

// The handle of an operator, looked up once. `Function` is one of the declarations in ops.h: the schema must agree.
template <class Function>
c10::TypedOperatorHandle<Function> find(const char* name, Function*, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Function>();
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> batchnorm_forward(const Tensor& input, const OptionalTensor& gamma,
                                                     const OptionalTensor& beta, const OptionalTensor& running_mean,
                                                     const OptionalTensor& running_var, bool training,
                                                     std::optional<double> momentum, double eps,
                                                     const OptionalTensor& num_batches_tracked) {
  static const auto op = find("my_ops::batchnorm_forward", batchnorm_forward);
  return op.call(input, gamma, beta, running_mean, running_var, training, momentum, eps, num_batches_tracked);
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_backward(const Tensor& grad_output, const Tensor& input,
                                                      const OptionalTensor& gamma, const Tensor& save_mean,
                                                      const Tensor& save_invstd, bool training,
                                                      OutputMask output_mask) {
  static const auto op = find("my_ops::batchnorm_backward", batchnorm_backward);
  return op.call(grad_output, input, gamma, save_mean, save_invstd, training, output_mask);
}

std::tuple<Tensor&, Tensor&, Tensor&> batchnorm_forward_out(
    const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
    const OptionalTensor& num_batches_tracked, Tensor& output, Tensor& save_mean, Tensor& save_invstd) {
  static const auto op = find("my_ops::batchnorm_forward", batchnorm_forward_out, "out");
  return op.call(input, gamma, beta, running_mean, running_var, training, momentum, eps, num_batches_tracked, output,
                 save_mean, save_invstd);
}

std::tuple<Tensor&, Tensor&, Tensor&> batchnorm_backward_out(const Tensor& grad_output, const Tensor& input,
                                                             const OptionalTensor& gamma, const Tensor& save_mean,
                                                             const Tensor& save_invstd, bool training,
                                                             OutputMask output_mask, Tensor& grad_input,
                                                             Tensor& grad_gamma, Tensor& grad_beta) {
  static const auto op = find("my_ops::batchnorm_backward", batchnorm_backward_out, "out");
  return op.call(grad_output, input, gamma, save_mean, save_invstd, training, output_mask, grad_input, grad_gamma,
                 grad_beta);
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_stats(const Tensor& input) {
  static const auto op = find("my_ops::batchnorm_stats", batchnorm_stats);
  return op.call(input);
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_gather_stats(const Tensor& mean, const Tensor& m2, const Tensor& count,
                                                          const OptionalTensor& running_mean,
                                                          const OptionalTensor& running_var,
                                                          std::optional<double> momentum, double eps,
                                                          const OptionalTensor& num_batches_tracked) {
  static const auto op = find("my_ops::batchnorm_gather_stats", batchnorm_gather_stats);
  return op.call(mean, m2, count, running_mean, running_var, momentum, eps, num_batches_tracked);
}

Tensor batchnorm_apply(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean,
                       const Tensor& invstd) {
  static const auto op = find("my_ops::batchnorm_apply", batchnorm_apply);
  return op.call(input, gamma, beta, mean, invstd);
}

Tensor& batchnorm_apply_out(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                            const Tensor& mean, const Tensor& invstd, Tensor& out) {
  static const auto op = find("my_ops::batchnorm_apply", batchnorm_apply_out, "out");
  return op.call(input, gamma, beta, mean, invstd, out);
}

std::tuple<Tensor, Tensor> batchnorm_backward_reduce(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                                                     const Tensor& invstd) {
  static const auto op = find("my_ops::batchnorm_backward_reduce", batchnorm_backward_reduce);
  return op.call(grad_output, input, mean, invstd);
}

Tensor batchnorm_backward_apply(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                                const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                                const Tensor& sum_dy_xhat, const Tensor& count) {
  static const auto op = find("my_ops::batchnorm_backward_apply", batchnorm_backward_apply);
  return op.call(grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat, count);
}

Tensor& batchnorm_backward_apply_out(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                                     const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                                     const Tensor& sum_dy_xhat, const Tensor& count, Tensor& out) {
  static const auto op = find("my_ops::batchnorm_backward_apply", batchnorm_backward_apply_out, "out");
  return op.call(grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat, count, out);
}

Tensor sync_batchnorm_apply(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                            const Tensor& mean, const Tensor& invstd, const Tensor& count, int64_t group_size,
                            std::string group_name, const OptionalTensor& residual, std::string_view activation,
                            double slope) {
  static const auto op = find("my_ops::sync_batchnorm_apply", sync_batchnorm_apply);
  return op.call(input, gamma, beta, mean, invstd, count, group_size, std::move(group_name), residual, activation,
                 slope);
}

Tensor all_gather(const Tensor& part, int64_t group_size, std::string group_name) {
  static const auto op = find("my_ops::all_gather", all_gather);
  return op.call(part, group_size, std::move(group_name));
}

Tensor reduce_scatter(const Tensor& parts, int64_t group_size, std::string group_name) {
  static const auto op = find("my_ops::reduce_scatter", reduce_scatter);
  return op.call(parts, group_size, std::move(group_name));
}

std::tuple<Tensor, Tensor, Tensor> instancenorm_forward(const Tensor& input, const OptionalTensor& gamma,
                                                        const OptionalTensor& beta, const OptionalTensor& running_mean,
                                                        const OptionalTensor& running_var, double momentum,
                                                        double eps) {
  static const auto op = find("my_ops::instancenorm_forward", instancenorm_forward);
  return op.call(input, gamma, beta, running_mean, running_var, momentum, eps);
}

std::tuple<Tensor, Tensor, Tensor> instancenorm_backward(const Tensor& grad_output, const Tensor& input,
                                                         const OptionalTensor& gamma, const Tensor& save_mean,
                                                         const Tensor& save_invstd, OutputMask output_mask) {
  static const auto op = find("my_ops::instancenorm_backward", instancenorm_backward);
  return op.call(grad_output, input, gamma, save_mean, save_invstd, output_mask);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_forward(
    const Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma, const OptionalTensor& beta,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
    std::optional<double> momentum, double eps, std::string_view activation, double slope,
    const OptionalTensor& num_batches_tracked) {
  static const auto op = find("my_ops::batchnorm_act_forward", batchnorm_act_forward);
  return op.call(input, residual, gamma, beta, running_mean, running_var, training, momentum, eps, activation, slope,
                 num_batches_tracked);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_backward(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual, const OptionalTensor& mask,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd,
    bool training, std::string_view activation, double slope, std::array<bool, 4> output_mask) {
  static const auto op = find("my_ops::batchnorm_act_backward", batchnorm_act_backward);
  return op.call(grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd, training, activation, slope,
                 output_mask);
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_act_backward_(Tensor& grad_output, const Tensor& input,
                                                           const OptionalTensor& residual, const OptionalTensor& mask,
                                                           const OptionalTensor& gamma, const OptionalTensor& beta,
                                                           const Tensor& save_mean, const Tensor& save_invstd,
                                                           bool training, std::string_view activation, double slope,
                                                           std::array<bool, 4> output_mask) {
  static const auto op = find("my_ops::batchnorm_act_backward_", batchnorm_act_backward_);
  return op.call(grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd, training, activation, slope,
                 output_mask);
}

std::tuple<Tensor, Tensor> batchnorm_act_apply(const Tensor& input, const OptionalTensor& residual,
                                               const OptionalTensor& gamma, const OptionalTensor& beta,
                                               const Tensor& mean, const Tensor& invstd, std::string_view activation,
                                               double slope) {
  static const auto op = find("my_ops::batchnorm_act_apply", batchnorm_act_apply);
  return op.call(input, residual, gamma, beta, mean, invstd, activation, slope);
}

std::tuple<Tensor, Tensor> batchnorm_act_backward_reduce(const Tensor& grad_output, const Tensor& input,
                                                         const OptionalTensor& residual, const OptionalTensor& mask,
                                                         const OptionalTensor& gamma, const OptionalTensor& beta,
                                                         const Tensor& mean, const Tensor& invstd,
                                                         std::string_view activation, double slope) {
  static const auto op = find("my_ops::batchnorm_act_backward_reduce", batchnorm_act_backward_reduce);
  return op.call(grad_output, input, residual, mask, gamma, beta, mean, invstd, activation, slope);
}

std::tuple<Tensor, Tensor> batchnorm_act_backward_apply(const Tensor& grad_output, const Tensor& input,
                                                        const OptionalTensor& residual, const OptionalTensor& mask,
                                                        const OptionalTensor& gamma, const OptionalTensor& beta,
                                                        const Tensor& mean, const Tensor& invstd,
                                                        std::string_view activation, double slope, const Tensor& sum_dy,
                                                        const Tensor& sum_dy_xhat, const Tensor& count) {
  static const auto op = find("my_ops::batchnorm_act_backward_apply", batchnorm_act_backward_apply);
  return op.call(grad_output, input, residual, mask, gamma, beta, mean, invstd, activation, slope, sum_dy, sum_dy_xhat,
                 count);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_forward_(
    Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
    std::string_view activation, double slope, const OptionalTensor& num_batches_tracked) {
  static const auto op = find("my_ops::batchnorm_act_forward_", batchnorm_act_forward_);
  return op.call(input, gamma, beta, running_mean, running_var, training, momentum, eps, activation, slope,
                 num_batches_tracked);
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_act_backward_from_output(
    const Tensor& grad_output, const Tensor& output, const Tensor& kept, const Tensor& kept_input,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd,
    bool training, std::string_view activation, double slope, OutputMask output_mask) {
  static const auto op = find("my_ops::batchnorm_act_backward_from_output", batchnorm_act_backward_from_output);
  return op.call(grad_output, output, kept, kept_input, gamma, beta, save_mean, save_invstd, training, activation,
                 slope, output_mask);
}

std::tuple<Tensor, Tensor, Tensor> conv_batchnorm_forward(
    const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& gamma,
    const OptionalTensor& beta, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, bool training,
    std::optional<double> momentum, double eps, const OptionalTensor& num_batches_tracked, std::string_view activation,
    double slope) {
  static const auto op = find("my_ops::conv_batchnorm_forward", conv_batchnorm_forward);
  return op.call(input, weight, bias, gamma, beta, running_mean, running_var, stride, padding, dilation, groups,
                 training, momentum, eps, num_batches_tracked, activation, slope);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> conv_batchnorm_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, bool training,
    std::string_view activation, double slope, ConvOutputMask output_mask) {
  static const auto op = find("my_ops::conv_batchnorm_backward", conv_batchnorm_backward);
  return op.call(grad_output, input, weight, bias, gamma, beta, save_mean, save_invstd, stride, padding, dilation,
                 groups, training, activation, slope, output_mask);
}

std::tuple<Tensor, Tensor> batchnorm_act_apply_(Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                                                const Tensor& mean, const Tensor& invstd, std::string_view activation,
                                                double slope) {
  static const auto op = find("my_ops::batchnorm_act_apply_", batchnorm_act_apply_);
  return op.call(input, gamma, beta, mean, invstd, activation, slope);
}

Tensor batchnorm_act_recover(const Tensor& output, const Tensor& kept, const Tensor& kept_input,
                             const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean,
                             const Tensor& invstd, std::string_view activation, double slope) {
  static const auto op = find("my_ops::batchnorm_act_recover", batchnorm_act_recover);
  return op.call(output, kept, kept_input, gamma, beta, mean, invstd, activation, slope);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sync_batchnorm_act_forward_(
    Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, std::optional<double> momentum, double eps, std::string_view activation,
    double slope, const OptionalTensor& num_batches_tracked, int64_t group_size, std::string group_name) {
  static const auto op = find("my_ops::sync_batchnorm_act_forward_", sync_batchnorm_act_forward_);
  return op.call(input, gamma, beta, running_mean, running_var, momentum, eps, activation, slope, num_batches_tracked,
                 group_size, std::move(group_name));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> sync_conv_batchnorm_forward(
    const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& gamma,
    const OptionalTensor& beta, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
    std::optional<double> momentum, double eps, const OptionalTensor& num_batches_tracked, std::string_view activation,
    double slope, int64_t group_size, std::string group_name) {
  static const auto op = find("my_ops::sync_conv_batchnorm_forward", sync_conv_batchnorm_forward);
  return op.call(input, weight, bias, gamma, beta, running_mean, running_var, stride, padding, dilation, groups,
                 momentum, eps, num_batches_tracked, activation, slope, group_size, std::move(group_name));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sync_conv_batchnorm_backward(
    const Tensor& grad_output, const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean, const Tensor& invstd,
    const Tensor& count, at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
    std::string_view activation, double slope, int64_t group_size, std::string group_name, ConvOutputMask output_mask) {
  static const auto op = find("my_ops::sync_conv_batchnorm_backward", sync_conv_batchnorm_backward);
  return op.call(grad_output, input, weight, bias, gamma, beta, mean, invstd, count, stride, padding, dilation, groups,
                 activation, slope, group_size, std::move(group_name), output_mask);
}

}  // namespace my_ops::ops
