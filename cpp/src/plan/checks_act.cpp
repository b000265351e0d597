// The operators with an activation, and those in place.
#include <algorithm>
#include <iterator>

#include "plan/checker.h"
#include "plan/invertible.h"

namespace my_ops::plan {
namespace {

using at::Tensor;

/// Of the activations, in the order of the enumeration.
constexpr std::string_view kNames[] = {"identity", "relu", "leaky_relu", "relu6", "elu", "silu", "gelu_tanh"};

void invertible(const char* op, Activation activation, double slope) {
  TORCH_CHECK_VALUE(is_invertible(activation, slope), op,
                    ": expected an activation with an inverse (identity, leaky_relu or elu with slope > 0), got ",
                    name_of(activation), " with slope ", slope);
}

/// The input is written, and has memory of its own for each value.
void input_memory(const char* op, const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                  const OptionalTensor& running_mean, const OptionalTensor& running_var) {
  const Checker check(op, {"input", input});
  check.result_memory({{"input", input}}, {{"gamma", or_none(gamma)},
                                           {"beta", or_none(beta)},
                                           {"running_mean", or_none(running_mean)},
                                           {"running_var", or_none(running_var)}});
}

/// What the backward operators with an activation have in common, but for the names of the statistics.
Checker act_backward_arguments(const char* op, const Tensor& grad_output, const Tensor& input,
                               const OptionalTensor& residual, const OptionalTensor& mask, const OptionalTensor& gamma,
                               const OptionalTensor& beta, Activation activation) {
  const Checker check(op, {"input", input});
  check.rank_and_dtype();
  check.like_input({"grad_output", grad_output});
  if (residual) check.like_input({"residual", *residual});
  check.mask(mask);
  const bool masked = mask && mask->sym_size(0) == (input.sym_numel() + 7) / 8;
  TORCH_CHECK(!residual || masked || !needs_only_bit(activation), op,
              ": expected mask instead of residual for relu, leaky_relu and relu6, got ",
              mask ? "an empty one" : "None");
  check.parameter("gamma", gamma);
  check.parameter("beta", beta);
  return check;
}

}  // namespace

Activation activation_named(const char* op, std::string_view name) {
  const auto* found = std::find(std::begin(kNames), std::end(kNames), name);
  if (found != std::end(kNames)) return static_cast<Activation>(found - std::begin(kNames));
  TORCH_CHECK_VALUE(false, op, ": expected activation identity, relu, leaky_relu, relu6, elu, silu or gelu_tanh, got ",
                    name);
}

std::string_view name_of(Activation activation) { return kNames[static_cast<size_t>(activation)]; }

void check_act_forward(const Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma,
                       const OptionalTensor& beta, const OptionalTensor& running_mean,
                       const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
                       const OptionalTensor& num_batches_tracked) {
  forward_arguments("batchnorm_act_forward", input, residual, gamma, beta, running_mean, running_var, training,
                    momentum, eps, num_batches_tracked);
}

void check_act_backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual,
                        const OptionalTensor& mask, const OptionalTensor& gamma, const OptionalTensor& beta,
                        const Tensor& save_mean, const Tensor& save_invstd, Activation activation) {
  const Checker check =
      act_backward_arguments("batchnorm_act_backward", grad_output, input, residual, mask, gamma, beta, activation);
  check.statistic({"save_mean", save_mean});
  check.statistic({"save_invstd", save_invstd});
}

void check_act_backward_in_place(const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual,
                                 const OptionalTensor& mask, const OptionalTensor& gamma, const OptionalTensor& beta,
                                 const Tensor& save_mean, const Tensor& save_invstd, Activation activation) {
  const Checker check =
      act_backward_arguments("batchnorm_act_backward_", grad_output, input, residual, mask, gamma, beta, activation);
  check.statistic({"save_mean", save_mean});
  check.statistic({"save_invstd", save_invstd});
  check.result_memory({{"grad_output", grad_output}}, {});
  const OptionalTensor written = grad_output;
  const OptionalTensor mean = save_mean;
  const OptionalTensor invstd = save_invstd;
  check.own_memory({{"grad_output", &written}}, {{"residual", &residual},
                                                 {"mask", &mask},
                                                 {"gamma", &gamma},
                                                 {"beta", &beta},
                                                 {"save_mean", &mean},
                                                 {"save_invstd", &invstd}});
}

void check_act_apply(const Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma,
                     const OptionalTensor& beta, const Tensor& mean, const Tensor& invstd) {
  const Checker check("batchnorm_act_apply", {"input", input});
  check.rank_and_dtype();
  if (residual) check.like_input({"residual", *residual});
  check.parameter("gamma", gamma);
  check.parameter("beta", beta);
  check.statistic({"mean", mean});
  check.statistic({"invstd", invstd});
}

void check_act_backward_reduce(const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual,
                               const OptionalTensor& mask, const OptionalTensor& gamma, const OptionalTensor& beta,
                               const Tensor& mean, const Tensor& invstd, Activation activation) {
  const Checker check = act_backward_arguments("batchnorm_act_backward_reduce", grad_output, input, residual, mask,
                                               gamma, beta, activation);
  check.statistic({"mean", mean});
  check.statistic({"invstd", invstd});
}

void check_act_backward_apply(const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual,
                              const OptionalTensor& mask, const OptionalTensor& gamma, const OptionalTensor& beta,
                              const Tensor& mean, const Tensor& invstd, Activation activation, const Tensor& sum_dy,
                              const Tensor& sum_dy_xhat, const Tensor& count) {
  const Checker check = act_backward_arguments("batchnorm_act_backward_apply", grad_output, input, residual, mask,
                                               gamma, beta, activation);
  check.statistic({"mean", mean});
  check.statistic({"invstd", invstd});
  check.statistic({"sum_dy", sum_dy});
  check.statistic({"sum_dy_xhat", sum_dy_xhat});
  check.count({"count", count}, 1);
}

void check_act_forward_in_place(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                                const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                                std::optional<double> momentum, double eps, Activation activation, double slope,
                                const OptionalTensor& num_batches_tracked) {
  const char* op = "batchnorm_act_forward_";
  invertible(op, activation, slope);
  forward_arguments(op, input, std::nullopt, gamma, beta, running_mean, running_var, training, momentum, eps,
                    num_batches_tracked);
  input_memory(op, input, gamma, beta, running_mean, running_var);
}

void check_sync_act_forward_in_place(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                                     const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                     std::optional<double> momentum, double eps, Activation activation, double slope,
                                     const OptionalTensor& num_batches_tracked, int64_t group_size) {
  const char* op = "sync_batchnorm_act_forward_";
  invertible(op, activation, slope);
  check_sync_forward(op, input, std::nullopt, gamma, beta, running_mean, running_var, momentum, eps,
                     num_batches_tracked, group_size);
  input_memory(op, input, gamma, beta, running_mean, running_var);
}

void check_act_apply_in_place(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                              const Tensor& mean, const Tensor& invstd, Activation activation, double slope) {
  const char* op = "batchnorm_act_apply_";
  invertible(op, activation, slope);
  const Checker check(op, {"input", input});
  check.rank_and_dtype();
  check.parameter("gamma", gamma);
  check.parameter("beta", beta);
  check.statistic({"mean", mean});
  check.statistic({"invstd", invstd});
  check.result_memory({{"input", input}},
                      {{"gamma", or_none(gamma)}, {"beta", or_none(beta)}, {"mean", mean}, {"invstd", invstd}});
}

void check_act_recover(const Tensor& output, const Tensor& kept, const Tensor& kept_input, const OptionalTensor& gamma,
                       const OptionalTensor& beta, const Tensor& mean, const Tensor& invstd, Activation activation,
                       double slope) {
  const char* op = "batchnorm_act_recover";
  invertible(op, activation, slope);
  const Checker check(op, {"output", output});
  check.rank_and_dtype();
  check.parameter("gamma", gamma);
  check.parameter("beta", beta);
  check.statistic({"mean", mean});
  check.statistic({"invstd", invstd});
  check.kept({"kept", kept}, {"kept_input", kept_input});
}

void check_act_backward_from_output(const Tensor& grad_output, const Tensor& output, const Tensor& kept,
                                    const Tensor& kept_input, const OptionalTensor& gamma, const OptionalTensor& beta,
                                    const Tensor& save_mean, const Tensor& save_invstd, Activation activation,
                                    double slope) {
  const char* op = "batchnorm_act_backward_from_output";
  invertible(op, activation, slope);
  const Checker check(op, {"output", output});
  check.rank_and_dtype();
  check.like_input({"grad_output", grad_output});
  check.parameter("gamma", gamma);
  check.parameter("beta", beta);
  check.statistic({"save_mean", save_mean});
  check.statistic({"save_invstd", save_invstd});
  check.kept({"kept", kept}, {"kept_input", kept_input});
}

}  // namespace my_ops::plan
