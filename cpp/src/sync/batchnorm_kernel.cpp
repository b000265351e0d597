// Synchronized batch norm, made of the phases and one collective: every rank has a part of the batch.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <torch/library.h>

#include "my_ops/ops.h"
#include "plan/checks.h"
#include "sync/collectives.h"

namespace my_ops::sync {
namespace {

using at::Tensor;
using ops::OptionalTensor;

/// What a rank tells the others: mean, M2 and, in the last 8 bytes, the bits of the count. C channels take
/// 8*C + 8 bytes (16*C + 8 in float64): no rounding of the count, and nothing else.
Tensor packed(const Tensor& mean, const Tensor& m2, const Tensor& count) {
  return at::cat({mean, m2, count.view(mean.scalar_type())});
}

/// mean [R, C], M2 [R, C] and count [R] of R messages.
std::tuple<Tensor, Tensor, Tensor> unpacked(const Tensor& messages, const c10::SymInt& channels) {
  const auto length = messages.sym_size(1);
  const Tensor counts = messages.detach().narrow_symint(1, 2 * channels, length - 2 * channels);
  return {messages.narrow_symint(1, 0, channels), messages.narrow_symint(1, channels, channels),
          counts.contiguous().view(at::kLong).flatten()};
}

/// (mean, invstd, count) of the batch of all ranks.
std::tuple<Tensor, Tensor, Tensor> statistics(const Tensor& input, const OptionalTensor& running_mean,
                                              const OptionalTensor& running_var, std::optional<double> momentum,
                                              double eps, const OptionalTensor& num_batches_tracked,
                                              const Group& group) {
  auto [mean, m2, count] = ops::batchnorm_stats(input);
  const Tensor messages = ops::all_gather(packed(mean, m2, count), group.size, group.name);
  auto [means, m2s, counts] = unpacked(messages, input.sym_size(1));
  return ops::batchnorm_gather_stats(means, m2s, counts, running_mean, running_var, momentum, eps, num_batches_tracked);
}

/// All arguments are checked before the first message: an error on one rank alone makes the others wait for it.
std::tuple<Tensor, Tensor, Tensor> sync_batchnorm_forward(
    const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, std::optional<double> momentum, double eps,
    const OptionalTensor& num_batches_tracked, int64_t group_size, std::string group_name) {
  plan::check_sync_forward(input, gamma, beta, running_mean, running_var, momentum, eps, num_batches_tracked,
                           group_size);
  plan::check_running_statistics("sync_batchnorm_forward", running_mean, running_var, true, num_batches_tracked);
  auto [mean, invstd, count] =
      statistics(input, running_mean, running_var, momentum, eps, num_batches_tracked, {group_size, group_name});
  Tensor output = ops::sync_batchnorm_apply(input, gamma, beta, mean, invstd, count, group_size, group_name);
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
                            const Tensor& mean, const Tensor& invstd, const Tensor&, int64_t, std::string) {
  return ops::batchnorm_apply(input, gamma, beta, mean, invstd);
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, CompositeImplicitAutograd, m) { m.impl("sync_batchnorm_forward", &sync_batchnorm_forward); }

TORCH_LIBRARY_IMPL(my_ops, CompositeExplicitAutograd, m) {
  m.impl("all_gather", &all_gather);
  m.impl("reduce_scatter", &reduce_scatter);
  m.impl("sync_batchnorm_apply", &sync_batchnorm_apply);
}

}  // namespace my_ops::sync
