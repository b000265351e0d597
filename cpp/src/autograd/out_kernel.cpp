// The `out` overloads have no derivatives: an argument that requires one is an error, as in torch's own.
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#include "my_ops/ops.h"
#include "plan/checks.h"

namespace my_ops::autograd {
namespace {

using at::Tensor;
using ops::OptionalTensor;
using ops::OutputMask;

template <class... Tensors>
void refuse_derivatives(const char* op, const Tensors&... tensors) {
  if (torch::autograd::compute_requires_grad(tensors...)) torch::autograd::throw_error_out_requires_grad(op);
  TORCH_CHECK_NOT_IMPLEMENTED(!(torch::autograd::isFwGradDefined(tensors) || ...), op,
                              "(): functions with out=... arguments don't support forward-mode derivatives, but one of "
                              "the arguments has a tangent.");
}

std::tuple<Tensor&, Tensor&, Tensor&> batchnorm_forward_out(
    const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
    const OptionalTensor& num_batches_tracked, Tensor& output, Tensor& save_mean, Tensor& save_invstd) {
  refuse_derivatives("batchnorm_forward", input, gamma, beta, running_mean, running_var, output, save_mean,
                     save_invstd);
  plan::check_running_statistics("batchnorm_forward", running_mean, running_var, training, num_batches_tracked);
  plan::check_written("batchnorm_forward", "output", output);
  plan::check_written("batchnorm_forward", "save_mean", save_mean);
  plan::check_written("batchnorm_forward", "save_invstd", save_invstd);
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    ops::batchnorm_forward_out(input, gamma, beta, running_mean, running_var, training, momentum, eps,
                               num_batches_tracked, output, save_mean, save_invstd);
  }
  if (training) {
    for (const auto* written : {&running_mean, &running_var, &num_batches_tracked}) {
      if (*written) torch::autograd::increment_version(**written);
    }
  }
  for (const Tensor* written : {&output, &save_mean, &save_invstd}) torch::autograd::increment_version(*written);
  return {output, save_mean, save_invstd};
}

std::tuple<Tensor&, Tensor&, Tensor&> batchnorm_backward_out(const Tensor& grad_output, const Tensor& input,
                                                             const OptionalTensor& gamma, const Tensor& save_mean,
                                                             const Tensor& save_invstd, bool training,
                                                             OutputMask output_mask, Tensor& grad_input,
                                                             Tensor& grad_gamma, Tensor& grad_beta) {
  refuse_derivatives("batchnorm_backward", grad_output, input, gamma, save_mean, save_invstd, grad_input, grad_gamma,
                     grad_beta);
  const Tensor* const gradients[] = {&grad_input, &grad_gamma, &grad_beta};
  const char* const names[] = {"grad_input", "grad_gamma", "grad_beta"};
  for (size_t i = 0; i < output_mask.size(); ++i) {
    if (output_mask[i]) plan::check_written("batchnorm_backward", names[i], *gradients[i]);
  }
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    ops::batchnorm_backward_out(grad_output, input, gamma, save_mean, save_invstd, training, output_mask, grad_input,
                                grad_gamma, grad_beta);
  }
  for (size_t i = 0; i < output_mask.size(); ++i) {
    if (output_mask[i]) torch::autograd::increment_version(*gradients[i]);
  }
  return {grad_input, grad_gamma, grad_beta};
}

Tensor& batchnorm_apply_out(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                            const Tensor& mean, const Tensor& invstd, Tensor& out) {
  refuse_derivatives("batchnorm_apply", input, gamma, beta, mean, invstd, out);
  plan::check_written("batchnorm_apply", "out", out);
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    ops::batchnorm_apply_out(input, gamma, beta, mean, invstd, out);
  }
  torch::autograd::increment_version(out);
  return out;
}

Tensor& batchnorm_backward_apply_out(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                                     const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy,
                                     const Tensor& sum_dy_xhat, const Tensor& count, Tensor& out) {
  refuse_derivatives("batchnorm_backward_apply", grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat, out);
  plan::check_written("batchnorm_backward_apply", "out", out);
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    ops::batchnorm_backward_apply_out(grad_output, input, gamma, mean, invstd, sum_dy, sum_dy_xhat, count, out);
  }
  torch::autograd::increment_version(out);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, Autograd, m) {
  m.impl("batchnorm_forward.out", &batchnorm_forward_out);
  m.impl("batchnorm_backward.out", &batchnorm_backward_out);
  m.impl("batchnorm_apply.out", &batchnorm_apply_out);
  m.impl("batchnorm_backward_apply.out", &batchnorm_backward_apply_out);
}

}  // namespace my_ops::autograd
