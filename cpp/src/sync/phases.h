// Synchronized batch norm between its collectives: statistics, and both directions of act(batchnorm(input) + residual).
// Made of operators, so that they are differentiable where these are.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "my_ops/ops.h"
#include "sync/collectives.h"

namespace my_ops::sync {

using ops::OptionalTensor;

/// (mean, invstd, count) of the batch of all ranks, of which `input` is this one's part. Running statistics move.
std::tuple<at::Tensor, at::Tensor, at::Tensor> statistics(const at::Tensor& input, const OptionalTensor& running_mean,
                                                          const OptionalTensor& running_var,
                                                          std::optional<double> momentum, double eps,
                                                          const OptionalTensor& num_batches_tracked,
                                                          const Group& group);

/// The sums of all ranks, [2*C] of [C] and [C]; the time between construction and total() is the messages'.
class SumOverRanks {
 public:
  SumOverRanks(const at::Tensor& first, const at::Tensor& second, const Group& group);

  /// In float64 and in an order that depends on R alone, so that every rank has the same bits.
  std::tuple<at::Tensor, at::Tensor> total() const;

 private:
  at::ScalarType dtype_;
  std::optional<Pending> pending_;
  at::Tensor parts_;
};

/// The activation, by name: without one (identity) the phases are those of plain batch norm.
struct Act {
  std::string_view name = "identity";
  double slope = 0;

  bool is_identity() const { return name == "identity"; }
};

/// The arguments of both directions. mean, invstd and count are those of the batch of all ranks.
struct Part {
  const at::Tensor& input;
  const OptionalTensor& residual;
  const OptionalTensor& gamma;
  const OptionalTensor& beta;
  const at::Tensor& mean;
  const at::Tensor& invstd;
  const at::Tensor& count;
  Act act;

  /// The output, and the mask of batchnorm_act_apply where there is one. No communication.
  std::tuple<at::Tensor, OptionalTensor> apply() const;

  /// Gradients of input, residual, gamma and beta; undefined where not wanted. That of the input is the whole one, what
  /// flows through the statistics of all ranks included; those of gamma and beta are this part's.
  std::array<at::Tensor, 4> gradients(const at::Tensor& dy, const OptionalTensor& mask, const Group& group,
                                      std::array<bool, 4> wanted, at::ScalarType beta_dtype) const;
};

}  // namespace my_ops::sync
