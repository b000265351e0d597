// Under autocast the convolution runs in the lower precision, forward and when it is run anew; batch norm follows its
// input and keeps float32 parameters.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "my_ops/ops.h"

namespace my_ops::autocast {
namespace {

using at::IntArrayRef;
using at::Tensor;
using ops::OptionalTensor;

template <c10::DeviceType device>
std::tuple<Tensor, Tensor, Tensor> conv_batchnorm_forward(
    const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& gamma,
    const OptionalTensor& beta, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups, bool training,
    std::optional<double> momentum, double eps, const OptionalTensor& num_batches_tracked, std::string_view activation,
    double slope) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const auto dtype = at::autocast::get_autocast_dtype(device);
  const auto cast = [&](const auto& tensor) { return at::autocast::cached_cast(dtype, tensor, device); };
  return ops::conv_batchnorm_forward(cast(input), cast(weight), cast(bias), gamma, beta, running_mean, running_var,
                                     stride, padding, dilation, groups, training, momentum, eps, num_batches_tracked,
                                     activation, slope);
}

template <c10::DeviceType device>
std::tuple<Tensor, Tensor, Tensor, Tensor> sync_conv_batchnorm_forward(
    const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& gamma,
    const OptionalTensor& beta, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation, int64_t groups, std::optional<double> momentum,
    double eps, const OptionalTensor& num_batches_tracked, std::string_view activation, double slope,
    int64_t group_size, std::string group_name) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const auto dtype = at::autocast::get_autocast_dtype(device);
  const auto cast = [&](const auto& tensor) { return at::autocast::cached_cast(dtype, tensor, device); };
  return ops::sync_conv_batchnorm_forward(cast(input), cast(weight), cast(bias), gamma, beta, running_mean, running_var,
                                          stride, padding, dilation, groups, momentum, eps, num_batches_tracked,
                                          activation, slope, group_size, std::move(group_name));
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, AutocastCPU, m) {
  m.impl("conv_batchnorm_forward", &conv_batchnorm_forward<at::kCPU>);
  m.impl("sync_conv_batchnorm_forward", &sync_conv_batchnorm_forward<at::kCPU>);
}

TORCH_LIBRARY_IMPL(my_ops, AutocastCUDA, m) {
  m.impl("conv_batchnorm_forward", &conv_batchnorm_forward<at::kCUDA>);
  m.impl("sync_conv_batchnorm_forward", &sync_conv_batchnorm_forward<at::kCUDA>);
}

}  // namespace my_ops::autocast
