// Batch norm, its phases, and what is built of them without an activation.
#include "plan/checks.h"

#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>

#include "plan/checker.h"

namespace my_ops::plan {

using at::Tensor;

void check_forward(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                   const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                   std::optional<double> momentum, double eps, const OptionalTensor& num_batches_tracked) {
  forward_arguments("batchnorm_forward", input, std::nullopt, gamma, beta, running_mean, running_var, training,
                    momentum, eps, num_batches_tracked);
}

void check_backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                    const Tensor& save_mean, const Tensor& save_invstd) {
  const Checker check("batchnorm_backward", {"input", input});
  check.rank_and_dtype();
  check.like_input({"grad_output", grad_output});
  check.parameter("gamma", gamma);
  check.statistic({"save_mean", save_mean});
  check.statistic({"save_invstd", save_invstd});
}

void check_stats(const Tensor& input) { Checker("batchnorm_stats", {"input", input}).rank_and_dtype(); }

void check_gather_stats(const Tensor& mean, const Tensor& m2, const Tensor& count, const OptionalTensor& running_mean,
                        const OptionalTensor& running_var, std::optional<double> momentum, double eps,
                        const OptionalTensor& num_batches_tracked) {
  const char* op = "batchnorm_gather_stats";
  const Checker check(op, {"mean", mean});
  check.parts();
  check.like_input({"m2", m2});
  check.count({"count", count}, mean.sym_size(0));
  check.running_statistic("running_mean", running_mean);
  check.running_statistic("running_var", running_var);
  check.counter(num_batches_tracked);
  check.eps_of_batch(eps);
  check.momentum(momentum, running_mean || running_var, num_batches_tracked);
  const OptionalTensor m2_argument = m2;
  const OptionalTensor count_argument = count;
  check.own_memory(
      {{"running_mean", &running_mean}, {"running_var", &running_var}, {"num_batches_tracked", &num_batches_tracked}},
      {{"m2", &m2_argument}, {"count", &count_argument}});
}

void check_apply(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& mean,
                 const Tensor& invstd) {
  const Checker check("batchnorm_apply", {"input", input});
  check.rank_and_dtype();
  check.parameter("gamma", gamma);
  check.parameter("beta", beta);
  check.statistic({"mean", mean});
  check.statistic({"invstd", invstd});
}

void check_backward_reduce(const Tensor& grad_output, const Tensor& input, const Tensor& mean, const Tensor& invstd) {
  const Checker check("batchnorm_backward_reduce", {"input", input});
  check.rank_and_dtype();
  check.like_input({"grad_output", grad_output});
  check.statistic({"mean", mean});
  check.statistic({"invstd", invstd});
}

void check_backward_apply(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                          const Tensor& mean, const Tensor& invstd, const Tensor& sum_dy, const Tensor& sum_dy_xhat,
                          const Tensor& count) {
  const Checker check("batchnorm_backward_apply", {"input", input});
  check.rank_and_dtype();
  check.like_input({"grad_output", grad_output});
  check.parameter("gamma", gamma);
  check.statistic({"mean", mean});
  check.statistic({"invstd", invstd});
  check.statistic({"sum_dy", sum_dy});
  check.statistic({"sum_dy_xhat", sum_dy_xhat});
  check.count({"count", count}, 1);
}

void check_sync_forward(const char* op, const Tensor& input, const OptionalTensor& residual,
                        const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
                        const OptionalTensor& running_var, std::optional<double> momentum, double eps,
                        const OptionalTensor& num_batches_tracked, int64_t group_size) {
  const Checker check =
      forward_tensors(op, input, residual, gamma, beta, running_mean, running_var, num_batches_tracked);
  training_arguments(check, residual, gamma, beta, running_mean, running_var, momentum, eps, num_batches_tracked);
  TORCH_CHECK(group_size > 0, op, ": expected group_size > 0, got ", group_size);
}

void check_instance_forward(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                            const OptionalTensor& running_mean, const OptionalTensor& running_var, double eps) {
  const char* op = "instancenorm_forward";
  const Checker check(op, {"input", input});
  check.rank_and_dtype(3);
  check.parameter("gamma", gamma);
  check.parameter("beta", beta);
  check.parameter("running_mean", running_mean);
  check.parameter("running_var", running_var);
  const auto numel = input.sym_numel();
  TORCH_CHECK_VALUE(numel == 0 || numel != input.sym_size(0) * input.sym_size(1), op,
                    ": expected more than 1 spatial value, got input of shape ", input.sym_sizes());
  TORCH_CHECK_VALUE(eps >= 0, op, ": expected eps >= 0, got ", eps);
  check.own_memory({{"running_mean", &running_mean}, {"running_var", &running_var}},
                   {{"gamma", &gamma}, {"beta", &beta}});
}

void check_instance_backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                             const Tensor& save_mean, const Tensor& save_invstd) {
  const Checker check("instancenorm_backward", {"input", input});
  check.rank_and_dtype(3);
  check.like_input({"grad_output", grad_output});
  check.parameter("gamma", gamma);
  check.instance_statistic({"save_mean", save_mean});
  check.instance_statistic({"save_invstd", save_invstd});
}

void check_written(const char* op, const char* name, const OptionalTensor& tensor) {
  TORCH_CHECK(!tensor || !tensor->is_inference() || c10::InferenceMode::is_enabled(), op, ": expected ", name,
              " to be a normal tensor outside of inference mode, got an inference tensor");
}

void check_running_statistics(const char* op, const OptionalTensor& running_mean, const OptionalTensor& running_var,
                              bool training, const OptionalTensor& num_batches_tracked) {
  const auto check = [op](const char* name, const OptionalTensor& tensor) {
    if (!tensor) return;
    TORCH_CHECK(!c10::GradMode::is_enabled() || !tensor->requires_grad(), op, ": expected ", name,
                " not to require grad");
    TORCH_CHECK(!tensor->_fw_grad(/*level=*/0).defined(), op, ": expected ", name, " not to have a tangent");
  };
  check("running_mean", running_mean);
  check("running_var", running_var);
  if (!training) return;
  check_written(op, "running_mean", running_mean);
  check_written(op, "running_var", running_var);
  check_written(op, "num_batches_tracked", num_batches_tracked);
}

}  // namespace my_ops::plan
