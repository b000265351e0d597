// Synchronized batch norm, made of the phases and one collective: every rank has a part of the batch. All arguments are
// checked before the first message: an error on one rank alone makes the others wait for it.
#include <torch/library.h>

#include "my_ops/ops.h"
#include "plan/checks.h"
#include "sync/collectives.h"
#include "sync/phases.h"

namespace my_ops::sync {
namespace {

using at::Tensor;

std::tuple<Tensor, Tensor, Tensor> sync_batchnorm_forward(
    const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, std::optional<double> momentum, double eps,
    const OptionalTensor& num_batches_tracked, int64_t group_size, std::string group_name,
    const OptionalTensor& residual, std::string_view activation, double slope) {
  const char* op = "sync_batchnorm_forward";
  plan::activation_named(op, activation);
  plan::check_sync_forward(op, input, residual, gamma, beta, running_mean, running_var, momentum, eps,
                           num_batches_tracked, group_size);
  plan::check_running_statistics(op, running_mean, running_var, true, num_batches_tracked);
  auto [mean, invstd, count] =
      statistics(input, running_mean, running_var, momentum, eps, num_batches_tracked, {group_size, group_name});
  Tensor output = ops::sync_batchnorm_apply(input, gamma, beta, mean, invstd, count, group_size, group_name, residual,
                                            activation, slope);
  return {output, mean, invstd};
}

Tensor all_gather(const Tensor& part, int64_t group_size, std::string group_name) {
  return start_all_gather(part, {group_size, group_name}).wait();
}

Tensor reduce_scatter(const Tensor& parts, int64_t group_size, std::string group_name) {
  return start_reduce_scatter(parts, {group_size, group_name}).wait();
}

/// Without derivatives there is nothing to tell the other ranks.
Tensor sync_batchnorm_apply(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                            const Tensor& mean, const Tensor& invstd, const Tensor& count, int64_t, std::string,
                            const OptionalTensor& residual, std::string_view activation, double slope) {
  return std::get<0>(Part{input, residual, gamma, beta, mean, invstd, count, {activation, slope}}.apply());
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sync_batchnorm_act_forward_(
    Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, std::optional<double> momentum, double eps, std::string_view activation,
    double slope, const OptionalTensor& num_batches_tracked, int64_t group_size, std::string group_name) {
  const auto named = plan::activation_named("sync_batchnorm_act_forward_", activation);
  plan::check_sync_act_forward_in_place(input, gamma, beta, running_mean, running_var, momentum, eps, named, slope,
                                        num_batches_tracked, group_size);
  auto [mean, invstd, count] =
      statistics(input, running_mean, running_var, momentum, eps, num_batches_tracked, {group_size, group_name});
  auto [kept, kept_input] = ops::batchnorm_act_apply_(input, gamma, beta, mean, invstd, activation, slope);
  return {mean, invstd, count, kept, kept_input};
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, CompositeImplicitAutograd, m) { m.impl("sync_batchnorm_forward", &sync_batchnorm_forward); }

TORCH_LIBRARY_IMPL(my_ops, CompositeExplicitAutograd, m) {
  m.impl("all_gather", &all_gather);
  m.impl("reduce_scatter", &reduce_scatter);
  m.impl("sync_batchnorm_apply", &sync_batchnorm_apply);
  m.impl("sync_batchnorm_act_forward_", &sync_batchnorm_act_forward_);
}

}  // namespace my_ops::sync
