// The launchers of the CUDA kernels, as the operators see them: plain structs and pointers to device memory, no torch
// type. Everything runs on `stream`, nothing waits for it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "cuda/launch_plan.h"
#include "plan/activation.h"

namespace my_ops::cuda {

enum class ElementType : int32_t { float64, float32, bfloat16, float16 };

/// One value per channel, of any type and stride. No data: an argument that is absent. With a period, that of channel c
/// is element c modulo the period: instance norm has N*C channels under C values of gamma.
struct Vector {
  void* data = nullptr;
  int64_t stride = 1;
  ElementType type = ElementType::float32;
  int64_t period = 0;
};

/// Running statistics, each optional. `counter`: num_batches_tracked, if given; it is incremented.
struct Running {
  Vector mean;
  Vector var;
  double momentum = 0;
  bool cumulative = false;  // factor 1 / (counter + 1) instead of momentum
  int64_t* counter = nullptr;
};

/// What every launcher needs.
struct Launch {
  LaunchPlan plan;
  ElementType type;
  cudaStream_t stream;
};

struct Affines {
  Vector gamma;
  Vector beta;
};

/// The teams that the current device can hold of the largest CTAs that a plan may ask for.
struct FusedLimits {
  int32_t cluster;   // CTAs in a cluster, of which enough fit to use most of the device; 1 if there are no clusters
  int32_t resident;  // CTAs of a cooperative launch; 0 if there are none
};
FusedLimits fused_limits(int32_t multiprocessors, int32_t shared_bytes);

/// Bytes of scratch memory on the device that the launchers of whole operators and of reductions need. What it holds
/// before does not matter.
int64_t workspace_bytes(const LaunchPlan& plan);

/// What follows z = batchnorm(x) in the same pass: y = act(z + residual). Images are laid out as x.
struct Epilogue {
  plan::Activation activation = plan::Activation::identity;
  double slope = 0;
  const void* residual = nullptr;
  uint8_t* written = nullptr;     // forward: a bit per value, act'(z) = 1; zeros before, unless mask_by_bytes(tiling)
  const uint8_t* mask = nullptr;  // backward: the same, instead of z
  Vector beta = {};               // backward: for z
  void* dz = nullptr;             // backward: the gradient of the residual, where wanted
};

/// batchnorm_forward with batch statistics.
struct ForwardTraining {
  const void* x;
  void* y;
  Affines affine;
  Running running;
  double eps;
  Vector save_mean;
  Vector save_invstd;
  void* workspace;
};
cudaError_t forward_training(const Launch& launch, const ForwardTraining& arguments);
cudaError_t act_forward_training(const Launch& launch, const ForwardTraining& arguments, const Epilogue& epilogue);

/// Its first half by stream, without y: statistics, also for apply (more precise than what is saved). Leaves the
/// counter to that.
cudaError_t forward_statistics(const Launch& launch, const ForwardTraining& arguments);
struct Statistics {
  Vector mean;
  Vector invstd;
};
Statistics statistics_in(void* workspace, const LaunchPlan& plan);

/// y from given statistics. `spread` is the variance, or invstd if so said. save_*: what was used, if wanted.
struct Apply {
  const void* x = nullptr;
  void* y = nullptr;
  Affines affine = {};
  Vector mean = {};
  Vector spread = {};
  bool spread_is_invstd = false;
  double eps = 0;
  Vector save_mean = {};
  Vector save_invstd = {};
  int64_t* counter = nullptr;  // num_batches_tracked, if it is to be incremented
};
cudaError_t apply(const Launch& launch, const Apply& arguments);
cudaError_t act_apply(const Launch& launch, const Apply& arguments, const Epilogue& epilogue);

struct Stats {
  const void* x;
  Vector mean;
  Vector m2;
  void* workspace;
};
cudaError_t stats(const Launch& launch, const Stats& arguments);

/// Parts as dense [parts, channels] and [parts], of an accumulation type. `total`: the sum of all counts.
struct GatherStats {
  const void* mean = nullptr;
  const void* m2 = nullptr;
  const int64_t* count = nullptr;
  int64_t parts = 0;
  int64_t channels = 0;
  Running running = {};
  double eps = 0;
  Vector out_mean = {};
  Vector out_invstd = {};
  const int64_t* total = nullptr;
};
cudaError_t gather_stats(ElementType accumulator, const GatherStats& arguments, cudaStream_t stream);

/// sum_dy and sum_dy_xhat: results where wanted, arguments of backward_apply.
struct Backward {
  const void* dy = nullptr;
  const void* x = nullptr;
  void* dx = nullptr;
  Vector gamma = {};
  Vector mean = {};
  Vector invstd = {};
  Vector sum_dy = {};
  Vector sum_dy_xhat = {};
  int64_t count = 0;                         // values per channel of the whole batch
  const int64_t* count_on_device = nullptr;  // instead of `count`, where given
  void* workspace = nullptr;
};
/// dx and both sums.
cudaError_t backward_training(const Launch& launch, const Backward& arguments);
cudaError_t act_backward_training(const Launch& launch, const Backward& arguments, const Epilogue& epilogue);
/// The sums alone.
cudaError_t backward_reduce(const Launch& launch, const Backward& arguments);
/// dx from the sums.
cudaError_t backward_apply(const Launch& launch, const Backward& arguments);
cudaError_t act_backward_apply(const Launch& launch, const Backward& arguments, const Epilogue& epilogue);
/// dx from dy, gamma and invstd alone; both sums in the same pass, where one of them is wanted.
cudaError_t backward_eval(const Launch& launch, const Backward& arguments);
/// What does not depend on sums: these themselves, dz and dx as of eval, each where wanted. Needs a workspace.
cudaError_t act_backward_reduce(const Launch& launch, const Backward& arguments, const Epilogue& epilogue);

}  // namespace my_ops::cuda
