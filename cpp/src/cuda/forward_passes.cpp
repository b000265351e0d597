#include "cuda/forward_passes.h"

#include <c10/cuda/CUDAException.h>

#include <cmath>

namespace my_ops::cuda {

using at::Tensor;

LaunchPlan plan_forward(const Problem& problem, bool training) {
  if (problem.shape.n * problem.shape.c * problem.shape.s == 0) return {};
  if (training) return plan_whole(problem, 1, current_device());
  return {Family::stream, plan_stream(problem, current_device()), 1};
}

void save_given(const Tensor& save_mean, const Tensor& save_invstd, const NormArguments& arguments) {
  if (arguments.training) {
    save_mean.zero_();
    save_invstd.fill_(1.0 / std::sqrt(arguments.eps));
  } else {
    save_mean.copy_(*arguments.running_mean);
    save_invstd.copy_(arguments.running_var->to(at::kDouble).add(arguments.eps).rsqrt_());
  }
}

void forward(const Tensor& x, const NormArguments& arguments, const LaunchPlan& plan, const Tensor& output,
             const Tensor& save_mean, const Tensor& save_invstd, const Epilogue* epilogue) {
  if (x.numel() == 0) return save_given(save_mean, save_invstd, arguments);
  const Launch launch = launch_of(x, plan);
  if (arguments.training) {
    const Tensor scratch = workspace(x, plan);
    const ForwardTraining passes{
        x.const_data_ptr(), output.mutable_data_ptr(), arguments.affine(),  arguments.running(),
        arguments.eps,      result(save_mean),         result(save_invstd), scratch.mutable_data_ptr()};
    C10_CUDA_CHECK(epilogue ? act_forward_training(launch, passes, *epilogue) : forward_training(launch, passes));
  } else {
    const Apply pass{x.const_data_ptr(),
                     output.mutable_data_ptr(),
                     arguments.affine(),
                     vector(arguments.running_mean),
                     vector(arguments.running_var),
                     /*spread_is_invstd=*/false,
                     arguments.eps,
                     result(save_mean),
                     result(save_invstd)};
    C10_CUDA_CHECK(epilogue ? act_apply(launch, pass, *epilogue) : apply(launch, pass));
  }
}

}  // namespace my_ops::cuda
