// In-place batch normalization with an activation keeps the output alone: which channels can be computed back from it,
// and the gradient before the activation.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "plan/activation.h"

namespace my_ops::plan {

/// Whether the activation has an inverse.
bool is_invertible(Activation activation, double slope);

/// The channels of x (int64, ascending) whose xhat could not be computed back well enough from output = act(z),
/// z = gamma * xhat + beta, stored in x's dtype.
///
/// Let t be the smallest positive number of that dtype, and r the sum of the unit roundoffs of storing y, once, and of
/// computing and inverting it in the accumulation type, four times. They turn z into z * (1 + r) + t / slope, and elu,
/// where z < 0 and its slope is slope * e^z, adds (r + t / slope) * e^-z. With |z| <= |gamma| * |xhat| + |beta|, and
/// gamma dividing all of that,
///
///   error of xhat <= r * |xhat| + (r * |beta| + t / slope + (r + t / slope) * e^-min(z)) / |gamma|
///
/// of which the first term is a rounding. A channel is kept if the second, in standard deviations of the channel,
/// exceeds 2^-12 (float32), 2^-32 (float64) or 2^-5 (16-bit types); or is not a number. gamma = 0 is such a channel. So
/// is one whose gamma or gamma * invstd is below the normal numbers of the statistics: it has no finite reciprocal.
/// min(z) is found in a pass over x, for elu alone.
at::Tensor channels_to_keep(const at::Tensor& x, const std::optional<at::Tensor>& gamma,
                            const std::optional<at::Tensor>& beta, const at::Tensor& mean, const at::Tensor& invstd,
                            Activation activation, double slope);

/// x of these channels, before it is overwritten.
at::Tensor input_to_keep(const at::Tensor& x, const at::Tensor& kept);

/// An error of `op` if `kept`, in a CPU's memory, names channels that there are not. On a GPU index_copy_ checks.
void check_kept(const char* op, const at::Tensor& kept, int64_t channels);

/// Whether `kept`, in a CPU's memory, is all channels in their order.
bool keeps_all(const at::Tensor& kept, int64_t channels);

/// dz = dy * act'(z) from y = act(z): computed back, z could have the other sign where it is nearly 0.
at::Tensor gradient_from_output(const at::Tensor& dy, const at::Tensor& y, Activation activation, double slope);

}  // namespace my_ops::plan
