// What the forward operators have in common, whatever follows the normalization.
#pragma once

#include "cuda/device.h"

namespace my_ops::cuda {

/// The arguments of a forward operator beside its images. `training` with values: the statistics of the batch, which
/// move the running ones.
struct NormArguments {
  const std::optional<at::Tensor>& gamma;
  const std::optional<at::Tensor>& beta;
  const std::optional<at::Tensor>& running_mean;
  const std::optional<at::Tensor>& running_var;
  bool training;
  std::optional<double> momentum;
  double eps;
  const std::optional<at::Tensor>& num_batches_tracked;

  Affines affine() const { return {vector(gamma), vector(beta)}; }
  Running running() const { return running_of(running_mean, running_var, momentum, num_batches_tracked); }
};

/// For the passes of a forward operator. Nothing is planned for no values.
LaunchPlan plan_forward(const Problem& problem, bool training);

/// All of a forward pass over a dense x; output laid out as x, as are the images of an epilogue. `plan`: of
/// plan_forward, for all of these.
void forward(const at::Tensor& x, const NormArguments& arguments, const LaunchPlan& plan, const at::Tensor& output,
             const at::Tensor& save_mean, const at::Tensor& save_invstd, const Epilogue* epilogue = nullptr);

/// What to normalise with where that is not the batch: the running statistics, and for a batch of no values mean 0 and
/// variance 0.
void save_given(const at::Tensor& save_mean, const at::Tensor& save_invstd, const NormArguments& arguments);

}  // namespace my_ops::cuda
