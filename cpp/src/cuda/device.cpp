#include "cuda/device.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <array>
#include <cstdlib>
#include <mutex>
#include <string>

#include "plan/problem.h"

namespace my_ops::cuda {
namespace {

constexpr size_t kMaxDevices = 64;

int32_t attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

const std::string& wanted_family() {
  static const std::string family = [] {
    const char* value = std::getenv("MY_OPS_CUDA_FAMILY");
    return std::string(value == nullptr ? "" : value);
  }();
  return family;
}

/// Leaves of the device what the environment variable asks for.
Device restricted(Device device) {
  const std::string& family = wanted_family();
  if (family.empty()) return device;
  const bool grid = family == "grid";
  TORCH_CHECK(grid || family == "stream" || family == "cta" || family == "cluster",
              "MY_OPS_CUDA_FAMILY: expected stream, cta, cluster or grid, got ", family);
  if (family == "stream" || grid) device.max_team = 0;
  if (family == "cta") device.max_team = 1;
  if (!grid) device.resident = 0;
  if (grid) device.grid_bytes = 0;
  return device;
}

Device ask(int device) {
  constexpr int32_t kFirstWithClusters = 9;
  constexpr int64_t kCachesForGrid = 2;  // launch_plan.cpp says why
  const int32_t multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  const int32_t shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const bool clusters = attribute(cudaDevAttrComputeCapabilityMajor, device) >= kFirstWithClusters;
  const bool cooperative = attribute(cudaDevAttrCooperativeLaunch, device) != 0;
  const FusedLimits limits = fused_limits(multiprocessors, shared_bytes);
  return restricted({multiprocessors, shared_bytes, clusters ? limits.cluster : 1, cooperative ? limits.resident : 0,
                     kCachesForGrid * attribute(cudaDevAttrL2CacheSize, device)});
}

}  // namespace

const Device& current_device() {
  static std::array<std::once_flag, kMaxDevices> asked;
  static std::array<Device, kMaxDevices> devices;
  const auto index = static_cast<size_t>(c10::cuda::current_device());
  std::call_once(asked.at(index), [&] { devices.at(index) = ask(static_cast<int>(index)); });
  return devices.at(index);
}

ElementType element_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return ElementType::float64;
    case at::kFloat:
      return ElementType::float32;
    case at::kBFloat16:
      return ElementType::bfloat16;
    default:
      TORCH_INTERNAL_ASSERT(dtype == at::kHalf);
      return ElementType::float16;
  }
}

Vector vector(const std::optional<at::Tensor>& tensor) {
  if (!tensor || !tensor->defined()) return {};
  // The kernels write only what the operators pass as results.
  return {const_cast<void*>(tensor->const_data_ptr()), tensor->stride(0), element_type(tensor->scalar_type())};
}

Vector result(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  return {tensor.mutable_data_ptr(), tensor.stride(0), element_type(tensor.scalar_type())};
}

Problem problem_of(const at::Tensor& like, std::initializer_list<const at::Tensor*> tensors) {
  const auto on_16_bytes = [](const at::Tensor& tensor) {
    return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  };
  bool aligned = on_16_bytes(like);
  for (const at::Tensor* tensor : tensors) aligned = aligned && (!tensor->defined() || on_16_bytes(*tensor));
  return {plan::shape_of(like), static_cast<int32_t>(like.element_size()), aligned};
}

Launch launch_of(const at::Tensor& x, const LaunchPlan& plan) {
  return {plan, element_type(x.scalar_type()), c10::cuda::getCurrentCUDAStream().stream()};
}

at::Tensor workspace(const at::Tensor& x, const LaunchPlan& plan) {
  return at::empty({workspace_bytes(plan)}, x.options().dtype(at::kByte));
}

at::Tensor empty_statistic(const at::Tensor& x) {
  return at::empty({x.size(1)}, x.options().dtype(plan::accumulation_dtype(x.scalar_type())));
}

Running running_of(const std::optional<at::Tensor>& mean, const std::optional<at::Tensor>& var,
                   std::optional<double> momentum, const std::optional<at::Tensor>& num_batches_tracked) {
  const auto written = [](const std::optional<at::Tensor>& tensor) { return tensor ? result(*tensor) : Vector{}; };
  auto* counter = num_batches_tracked ? static_cast<int64_t*>(num_batches_tracked->mutable_data_ptr()) : nullptr;
  return {written(mean), written(var), momentum.value_or(0.0), !momentum && counter != nullptr, counter};
}

}  // namespace my_ops::cuda
