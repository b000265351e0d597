// Shapes, dtypes and layouts of instance norm without data. Sizes may be symbolic.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/problem.h"

namespace my_ops {
namespace {

using at::Tensor;
using ops::OptionalTensor;
using ops::OutputMask;

Tensor image_like(const Tensor& input) { return at::empty_like(plan::dense(input)); }

/// [N, C]
Tensor statistic(const Tensor& input) {
  const auto dtype = plan::accumulation_dtype(input.scalar_type());
  return at::empty_symint({input.sym_size(0), input.sym_size(1)}, input.options().dtype(dtype));
}

std::tuple<Tensor, Tensor, Tensor> instancenorm_forward(const Tensor& input, const OptionalTensor& gamma,
                                                        const OptionalTensor& beta, const OptionalTensor& running_mean,
                                                        const OptionalTensor& running_var, double momentum,
                                                        double eps) {
  plan::check_instance_forward(input, gamma, beta, running_mean, running_var, eps);
  return {image_like(input), statistic(input), statistic(input)};
}

std::tuple<Tensor, Tensor, Tensor> instancenorm_backward(const Tensor& grad_output, const Tensor& input,
                                                         const OptionalTensor& gamma, const Tensor& save_mean,
                                                         const Tensor& save_invstd, OutputMask output_mask) {
  plan::check_instance_backward(grad_output, input, gamma, save_mean, save_invstd);
  const auto dtype = gamma ? gamma->scalar_type() : save_mean.scalar_type();
  const auto vector = [&](bool wanted) {
    return wanted ? at::empty_symint({input.sym_size(1)}, input.options().dtype(dtype)) : Tensor();
  };
  return {output_mask[0] ? image_like(input) : Tensor(), vector(output_mask[1]), vector(output_mask[2])};
}

}  // namespace

TORCH_LIBRARY_IMPL(my_ops, Meta, m) {
  m.impl("instancenorm_forward", &instancenorm_forward);
  m.impl("instancenorm_backward", &instancenorm_backward);
}

}  // namespace my_ops
