#include "plan/checker.h"

#include <c10/core/ScalarType.h>

#include <string>

#include "plan/overlap.h"
#include "plan/problem.h"

namespace my_ops::plan {
namespace {

using at::ScalarType;
using at::Tensor;

const Tensor kNone;

bool is_half(ScalarType dtype) { return dtype == at::kHalf || dtype == at::kBFloat16; }

std::string dtype_name(ScalarType dtype) { return std::string(c10::getDtypeNames(dtype).first); }

}  // namespace

const Tensor& or_none(const OptionalTensor& tensor) { return tensor ? *tensor : kNone; }

void Checker::rank_and_dtype(int64_t rank) const {
  strided({name_, input_});
  TORCH_CHECK(input_.dim() >= rank, op_, ": expected input of rank ", rank, " or more, got shape ", input_.sym_sizes());
  const ScalarType got = input_.scalar_type();
  TORCH_CHECK(got == at::kDouble || got == at::kFloat || is_half(got), op_,
              ": expected input of dtype float64, float32, bfloat16 or float16, got ", dtype_name(got));
}

void Checker::parts() const {
  strided({name_, input_});
  TORCH_CHECK(input_.dim() == 2, op_, ": expected ", name_, " of rank 2 (parts, channels), got shape ",
              input_.sym_sizes());
  const ScalarType got = input_.scalar_type();
  TORCH_CHECK(got == at::kDouble || got == at::kFloat, op_, ": expected ", name_, " of dtype float64 or float32, got ",
              dtype_name(got));
}

void Checker::like_input(Argument a) const {
  device(a);
  TORCH_CHECK(same_sizes(a.tensor, input_), op_, ": expected ", a.name, " of shape ", input_.sym_sizes(), ", got ",
              a.tensor.sym_sizes());
  dtype(a, input_.scalar_type());
}

void Checker::parameter(const char* name, const OptionalTensor& tensor) const {
  if (!tensor) return;
  const Argument a{name, *tensor};
  device(a);
  channels(a);
  const ScalarType wanted = input_.scalar_type();
  const ScalarType got = a.tensor.scalar_type();
  TORCH_CHECK(got == wanted || (is_half(wanted) && got == at::kFloat), op_, ": expected ", name, " of dtype ",
              dtype_name(wanted), is_half(wanted) ? " or float32" : "", ", got ", dtype_name(got));
}

void Checker::running_statistic(const char* name, const OptionalTensor& tensor) const {
  if (!tensor) return;
  const Argument a{name, *tensor};
  device(a);
  channels(a);
  const ScalarType wanted = input_.scalar_type();
  const ScalarType got = a.tensor.scalar_type();
  TORCH_CHECK(got == wanted || (wanted == at::kFloat && is_half(got)), op_, ": expected ", name, " of dtype ",
              wanted == at::kFloat ? "float32, bfloat16 or float16" : "float64", ", got ", dtype_name(got));
}

void Checker::statistic(Argument a) const {
  device(a);
  channels(a);
  dtype(a, accumulation_dtype(input_.scalar_type()));
}

void Checker::instance_statistic(Argument a) const {
  device(a);
  const auto wanted = input_.sym_sizes().slice(0, 2);
  TORCH_CHECK(a.tensor.dim() == 2 && a.tensor.sym_sizes() == wanted, op_, ": expected ", a.name, " of shape ", wanted,
              ", got ", a.tensor.sym_sizes());
  dtype(a, accumulation_dtype(input_.scalar_type()));
}

void Checker::count(Argument a, const c10::SymInt& parts) const {
  device(a);
  TORCH_CHECK(a.tensor.dim() == 1 && a.tensor.sym_size(0) == parts, op_, ": expected ", a.name, " of shape [", parts,
              "], got ", a.tensor.sym_sizes());
  dtype(a, at::kLong);
}

void Checker::mask(const OptionalTensor& mask) const {
  if (!mask) return;
  const Argument a{"mask", *mask};
  device(a);
  dtype(a, at::kByte);
  const c10::SymInt bytes = (input_.sym_numel() + 7) / 8;
  TORCH_CHECK(mask->dim() == 1 && (mask->sym_size(0) == 0 || mask->sym_size(0) == bytes), op_,
              ": expected mask of shape [", bytes, "], got ", mask->sym_sizes());
}

void Checker::kept(Argument channels, Argument values) const {
  device(channels);
  device(values);
  dtype(channels, at::kLong);
  dtype(values, input_.scalar_type());
  TORCH_CHECK(channels.tensor.dim() == 1, op_, ": expected ", channels.name, " of shape [channels], got ",
              channels.tensor.sym_sizes());
  auto sizes = input_.sym_sizes().vec();
  sizes[1] = channels.tensor.sym_size(0);
  TORCH_CHECK(values.tensor.sym_sizes() == c10::SymIntArrayRef(sizes), op_, ": expected ", values.name, " of shape ",
              c10::SymIntArrayRef(sizes), ", got ", values.tensor.sym_sizes());
}

void Checker::counter(const OptionalTensor& num_batches_tracked) const {
  if (!num_batches_tracked) return;
  const Argument a{"num_batches_tracked", *num_batches_tracked};
  device(a);
  TORCH_CHECK(a.tensor.dim() == 0, op_, ": expected num_batches_tracked of shape [], got ", a.tensor.sym_sizes());
  dtype(a, at::kLong);
}

void Checker::eps_of_batch(double eps) const {
  TORCH_CHECK_VALUE(eps > 0, op_, ": expected eps > 0 when training, got ", eps);
}

void Checker::eps_of_running_var(double eps) const {
  TORCH_CHECK_VALUE(eps >= 0, op_, ": expected eps >= 0 when training is False, got ", eps);
}

void Checker::momentum(std::optional<double> momentum, bool updates, const OptionalTensor& num_batches_tracked) const {
  TORCH_CHECK(momentum || !updates || num_batches_tracked, op_,
              ": expected num_batches_tracked when momentum is None, got None");
}

void Checker::image_result(Argument a) const {
  device(a);
  dtype(a, input_.scalar_type());
  TORCH_CHECK(a.tensor.sym_numel() == 0 || same_sizes(a.tensor, input_), op_, ": expected ", a.name, " of shape ",
              input_.sym_sizes(), " or without elements, got ", a.tensor.sym_sizes());
}

void Checker::channel_result(Argument a, ScalarType wanted) const {
  device(a);
  dtype(a, wanted);
  const auto channels = input_.sym_size(1);
  TORCH_CHECK(a.tensor.sym_numel() == 0 || (a.tensor.dim() == 1 && a.tensor.sym_size(0) == channels), op_,
              ": expected ", a.name, " of shape [", channels, "] or without elements, got ", a.tensor.sym_sizes());
}

void Checker::result_memory(std::initializer_list<Argument> results, std::initializer_list<Argument> read) const {
  if (!has_memory(input_)) return;
  for (const auto* w = results.begin(); w != results.end(); ++w) {
    if (!w->tensor.defined()) continue;
    TORCH_CHECK(!overlaps_itself(w->tensor), op_, ": expected ", w->name, " with memory for each value, got strides ",
                w->tensor.strides());
    for (const Argument& r : read) {
      const bool in_place = w->tensor.dim() > 1 && r.tensor.defined() && same_memory(w->tensor, r.tensor);
      if (!in_place) disjoint(*w, r);
    }
    for (const auto* other = results.begin(); other != w; ++other) disjoint(*w, *other);
  }
}

void Checker::own_memory(std::initializer_list<std::pair<const char*, const OptionalTensor*>> written,
                         std::initializer_list<std::pair<const char*, const OptionalTensor*>> read) const {
  if (!has_memory(input_)) return;
  for (const auto* w = written.begin(); w != written.end(); ++w) {
    if (!*w->second) continue;
    const Argument a{w->first, **w->second};
    TORCH_CHECK(a.tensor.dim() == 0 || a.tensor.size(0) < 2 || a.tensor.stride(0) != 0, op_, ": expected ", a.name,
                " with memory for each channel, got stride 0");
    disjoint(a, {name_, input_});
    for (const auto& r : read) {
      if (*r.second) disjoint(a, {r.first, **r.second});
    }
    for (const auto* other = written.begin(); other != w; ++other) {
      if (*other->second) disjoint(a, {other->first, **other->second});
    }
  }
}

void Checker::device(Argument a) const {
  TORCH_CHECK(a.tensor.device() == input_.device(), op_, ": expected ", a.name, " on device ", input_.device(),
              ", got ", a.tensor.device());
  strided(a);
}

void Checker::strided(Argument a) const {
  TORCH_CHECK(a.tensor.layout() == at::kStrided, op_, ": expected ", a.name, " to be a strided tensor, got ",
              a.tensor.layout());
  if (!has_memory(a.tensor)) return;
  const auto size = a.tensor.element_size();
  const auto beyond = reinterpret_cast<uintptr_t>(a.tensor.const_data_ptr()) % size;
  TORCH_CHECK(beyond == 0, op_, ": expected ", a.name, " at a multiple of ", size, " bytes, got an address ", beyond,
              " beyond one");
}

void Checker::channels(Argument a) const {
  TORCH_CHECK(a.tensor.dim() == 1 && a.tensor.sym_size(0) == input_.sym_size(1), op_, ": expected ", a.name,
              " of shape [", input_.sym_size(1), "], got ", a.tensor.sym_sizes());
}

void Checker::dtype(Argument a, ScalarType wanted) const {
  TORCH_CHECK(a.tensor.scalar_type() == wanted, op_, ": expected ", a.name, " of dtype ", dtype_name(wanted), ", got ",
              dtype_name(a.tensor.scalar_type()));
}

bool Checker::has_memory(const Tensor& tensor) {
  const auto* tensor_impl = tensor.unsafeGetTensorImpl();
  return !tensor.is_meta() && tensor.has_storage() && !tensor_impl->has_symbolic_sizes_strides() &&
         !tensor_impl->is_python_dispatch() && !tensor.key_set().has(c10::DispatchKey::Functionalize);
}

void Checker::disjoint(Argument a, Argument b) const {
  TORCH_CHECK(!overlap(a.tensor, b.tensor), op_, ": expected ", a.name, " to have memory of its own, but it overlaps ",
              b.name);
}

bool Checker::same_sizes(const Tensor& a, const Tensor& b) {
  return a.dim() == b.dim() && a.sym_sizes() == b.sym_sizes();
}

Checker forward_tensors(const char* op, const Tensor& input, const OptionalTensor& residual,
                        const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
                        const OptionalTensor& running_var, const OptionalTensor& num_batches_tracked) {
  const Checker check(op, {"input", input});
  check.rank_and_dtype();
  if (residual) check.like_input({"residual", *residual});
  check.parameter("gamma", gamma);
  check.parameter("beta", beta);
  check.parameter("running_mean", running_mean);
  check.parameter("running_var", running_var);
  check.counter(num_batches_tracked);
  return check;
}

void training_arguments(const Checker& check, const OptionalTensor& residual, const OptionalTensor& gamma,
                        const OptionalTensor& beta, const OptionalTensor& running_mean,
                        const OptionalTensor& running_var, std::optional<double> momentum, double eps,
                        const OptionalTensor& num_batches_tracked) {
  check.eps_of_batch(eps);
  check.momentum(momentum, running_mean || running_var, num_batches_tracked);
  check.own_memory(
      {{"running_mean", &running_mean}, {"running_var", &running_var}, {"num_batches_tracked", &num_batches_tracked}},
      {{"residual", &residual}, {"gamma", &gamma}, {"beta", &beta}});
}

void forward_arguments(const char* op, const Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma,
                       const OptionalTensor& beta, const OptionalTensor& running_mean,
                       const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
                       const OptionalTensor& num_batches_tracked) {
  const Checker check =
      forward_tensors(op, input, residual, gamma, beta, running_mean, running_var, num_batches_tracked);
  if (training) {
    const auto numel = input.sym_numel();
    TORCH_CHECK_VALUE(numel == 0 || numel != input.sym_size(1), op,
                      ": expected more than 1 value per channel when training, got input of shape ", input.sym_sizes());
    training_arguments(check, residual, gamma, beta, running_mean, running_var, momentum, eps, num_batches_tracked);
  } else {
    TORCH_CHECK(running_mean, op, ": expected running_mean when training is False, got None");
    TORCH_CHECK(running_var, op, ": expected running_var when training is False, got None");
    check.eps_of_running_var(eps);
  }
}

}  // namespace my_ops::plan
