// The `out` overloads.
#include "plan/checker.h"
#include "plan/problem.h"

namespace my_ops::plan {

using at::Tensor;

void check_forward_out(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                       const OptionalTensor& running_mean, const OptionalTensor& running_var,
                       const OptionalTensor& num_batches_tracked, const Tensor& output, const Tensor& save_mean,
                       const Tensor& save_invstd) {
  const Checker check("batchnorm_forward", {"input", input});
  const auto statistics = accumulation_dtype(input.scalar_type());
  check.image_result({"output", output});
  check.channel_result({"save_mean", save_mean}, statistics);
  check.channel_result({"save_invstd", save_invstd}, statistics);
  check.result_memory({{"output", output}, {"save_mean", save_mean}, {"save_invstd", save_invstd}},
                      {{"input", input},
                       {"gamma", or_none(gamma)},
                       {"beta", or_none(beta)},
                       {"running_mean", or_none(running_mean)},
                       {"running_var", or_none(running_var)},
                       {"num_batches_tracked", or_none(num_batches_tracked)}});
}

void check_backward_out(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                        const Tensor& save_mean, const Tensor& save_invstd, std::array<bool, 3> output_mask,
                        const Tensor& grad_input, const Tensor& grad_gamma, const Tensor& grad_beta) {
  const Checker check("batchnorm_backward", {"input", input});
  const auto gradients = gamma ? gamma->scalar_type() : save_mean.scalar_type();
  const auto wanted = [&](int i, const Tensor& result) -> const Tensor& {
    return output_mask[i] ? result : or_none(std::nullopt);
  };
  if (output_mask[0]) check.image_result({"grad_input", grad_input});
  if (output_mask[1]) check.channel_result({"grad_gamma", grad_gamma}, gradients);
  if (output_mask[2]) check.channel_result({"grad_beta", grad_beta}, gradients);
  check.result_memory({{"grad_input", wanted(0, grad_input)},
                       {"grad_gamma", wanted(1, grad_gamma)},
                       {"grad_beta", wanted(2, grad_beta)}},
                      {{"grad_output", grad_output},
                       {"input", input},
                       {"gamma", or_none(gamma)},
                       {"save_mean", save_mean},
                       {"save_invstd", save_invstd}});
}

void check_apply_out(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean,
                     const Tensor& invstd, const Tensor& out) {
  const Checker check("batchnorm_apply", {"input", input});
  check.image_result({"out", out});
  check.result_memory(
      {{"out", out}},
      {{"input", input}, {"gamma", or_none(gamma)}, {"beta", or_none(beta)}, {"mean", mean}, {"invstd", invstd}});
}

void check_backward_apply_out(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                              const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy, const Tensor& sum_dy_xhat,
                              const Tensor& count, const Tensor& out) {
  const Checker check("batchnorm_backward_apply", {"input", input});
  check.image_result({"out", out});
  check.result_memory({{"out", out}}, {{"grad_output", grad_output},
                                       {"input", input},
                                       {"gamma", or_none(gamma)},
                                       {"mean", mean},
                                       {"invstd", invstd},
                                       {"sum_dy", sum_dy},
                                       {"sum_dy_xhat", sum_dy_xhat},
                                       {"count", count}});
}

}  // namespace my_ops::plan
