// The GPU that a tensor lies on, and tensors as the kernels take them.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <optional>

#include "cuda/kernels.h"

namespace my_ops::cuda {

/// Facts about the current device, asked for once. The environment variable MY_OPS_CUDA_FAMILY, read once, leaves one
/// family of launch_plan.h beside stream: stream (no other), cta (fused without clusters), cluster (fused), grid
/// (however small the problem).
const Device& current_device();

ElementType element_type(at::ScalarType dtype);

/// A vector [C]; absent if there is no tensor or it is undefined.
Vector vector(const std::optional<at::Tensor>& tensor);

/// Fills a [C] tensor that is written.
Vector result(const at::Tensor& tensor);

/// The shape of `like`, which is dense, as are `tensors`.
Problem problem_of(const at::Tensor& like, std::initializer_list<const at::Tensor*> tensors);

/// `plan` for elements like those of `x`, on the current stream of the current device.
Launch launch_of(const at::Tensor& x, const LaunchPlan& plan);

/// Scratch memory from torch's caching allocator; free for others when the stream has come that far.
at::Tensor workspace(const at::Tensor& x, const LaunchPlan& plan);

/// [C] beside `x`, of its accumulation type.
at::Tensor empty_statistic(const at::Tensor& x);

/// The last arguments of batchnorm_forward and batchnorm_gather_stats.
Running running_of(const std::optional<at::Tensor>& mean, const std::optional<at::Tensor>& var,
                   std::optional<double> momentum, const std::optional<at::Tensor>& num_batches_tracked);

}  // namespace my_ops::cuda
