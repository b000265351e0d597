#include "plan/checks.h"

#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/ScalarType.h>

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <string>
#include <utility>

#include "plan/invertible.h"
#include "plan/overlap.h"
#include "plan/problem.h"

namespace my_ops::plan {
namespace {

using at::ScalarType;
using at::Tensor;

/// A tensor argument and its name in the schema.
struct Argument {
  const char* name;
  const Tensor& tensor;
};

const Tensor kNone;

/// Of the activations, in the order of the enumeration.
constexpr std::string_view kNames[] = {"identity", "relu", "leaky_relu", "relu6", "elu", "silu", "gelu_tanh"};

const Tensor& or_none(const OptionalTensor& tensor) { return tensor ? *tensor : kNone; }

bool is_half(ScalarType dtype) { return dtype == at::kHalf || dtype == at::kBFloat16; }

std::string dtype_name(ScalarType dtype) { return std::string(c10::getDtypeNames(dtype).first); }

/// The checks of one operator. `input` is what the other arguments must go with.
class Checker {
 public:
  Checker(const char* op, Argument input) : op_(op), name_(input.name), input_(input.tensor) {}

  void rank_and_dtype(int64_t rank = 2) const {
    strided({name_, input_});
    TORCH_CHECK(input_.dim() >= rank, op_, ": expected input of rank ", rank, " or more, got shape ",
                input_.sym_sizes());
    const ScalarType got = input_.scalar_type();
    TORCH_CHECK(got == at::kDouble || got == at::kFloat || is_half(got), op_,
                ": expected input of dtype float64, float32, bfloat16 or float16, got ", dtype_name(got));
  }

  /// The statistics of R parts: [R, C], of an accumulation dtype.
  void parts() const {
    strided({name_, input_});
    TORCH_CHECK(input_.dim() == 2, op_, ": expected ", name_, " of rank 2 (parts, channels), got shape ",
                input_.sym_sizes());
    const ScalarType got = input_.scalar_type();
    TORCH_CHECK(got == at::kDouble || got == at::kFloat, op_, ": expected ", name_,
                " of dtype float64 or float32, got ", dtype_name(got));
  }

  /// Same sizes, dtype and device as the input.
  void like_input(Argument a) const {
    device(a);
    TORCH_CHECK(same_sizes(a.tensor, input_), op_, ": expected ", a.name, " of shape ", input_.sym_sizes(), ", got ",
                a.tensor.sym_sizes());
    dtype(a, input_.scalar_type());
  }

  /// gamma, beta, running statistics: [C], of the input's dtype or float32.
  void parameter(const char* name, const OptionalTensor& tensor) const {
    if (!tensor) return;
    const Argument a{name, *tensor};
    device(a);
    channels(a);
    const ScalarType wanted = input_.scalar_type();
    const ScalarType got = a.tensor.scalar_type();
    TORCH_CHECK(got == wanted || (is_half(wanted) && got == at::kFloat), op_, ": expected ", name, " of dtype ",
                dtype_name(wanted), is_half(wanted) ? " or float32" : "", ", got ", dtype_name(got));
  }

  /// Running statistics beside float32 parts may be of any dtype whose statistics are float32.
  void running_statistic(const char* name, const OptionalTensor& tensor) const {
    if (!tensor) return;
    const Argument a{name, *tensor};
    device(a);
    channels(a);
    const ScalarType wanted = input_.scalar_type();
    const ScalarType got = a.tensor.scalar_type();
    TORCH_CHECK(got == wanted || (wanted == at::kFloat && is_half(got)), op_, ": expected ", name, " of dtype ",
                wanted == at::kFloat ? "float32, bfloat16 or float16" : "float64", ", got ", dtype_name(got));
  }

  /// Statistics and sums: [C], of the accumulation dtype.
  void statistic(Argument a) const {
    device(a);
    channels(a);
    dtype(a, accumulation_dtype(input_.scalar_type()));
  }

  /// The same of every image: [N, C].
  void instance_statistic(Argument a) const {
    device(a);
    const auto wanted = input_.sym_sizes().slice(0, 2);
    TORCH_CHECK(a.tensor.dim() == 2 && a.tensor.sym_sizes() == wanted, op_, ": expected ", a.name, " of shape ", wanted,
                ", got ", a.tensor.sym_sizes());
    dtype(a, accumulation_dtype(input_.scalar_type()));
  }

  void count(Argument a, const c10::SymInt& parts) const {
    device(a);
    TORCH_CHECK(a.tensor.dim() == 1 && a.tensor.sym_size(0) == parts, op_, ": expected ", a.name, " of shape [", parts,
                "], got ", a.tensor.sym_sizes());
    dtype(a, at::kLong);
  }

  /// A bit for each element of the input, or nothing.
  void mask(const OptionalTensor& mask) const {
    if (!mask) return;
    const Argument a{"mask", *mask};
    device(a);
    dtype(a, at::kByte);
    const c10::SymInt bytes = (input_.sym_numel() + 7) / 8;
    TORCH_CHECK(mask->dim() == 1 && (mask->sym_size(0) == 0 || mask->sym_size(0) == bytes), op_,
                ": expected mask of shape [", bytes, "], got ", mask->sym_sizes());
  }

  /// k channels, and their values.
  void kept(Argument channels, Argument values) const {
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

  void counter(const OptionalTensor& num_batches_tracked) const {
    if (!num_batches_tracked) return;
    const Argument a{"num_batches_tracked", *num_batches_tracked};
    device(a);
    TORCH_CHECK(a.tensor.dim() == 0, op_, ": expected num_batches_tracked of shape [], got ", a.tensor.sym_sizes());
    dtype(a, at::kLong);
  }

  void eps_of_batch(double eps) const {
    TORCH_CHECK_VALUE(eps > 0, op_, ": expected eps > 0 when training, got ", eps);
  }

  void eps_of_running_var(double eps) const {
    TORCH_CHECK_VALUE(eps >= 0, op_, ": expected eps >= 0 when training is False, got ", eps);
  }

  void momentum(std::optional<double> momentum, bool updates, const OptionalTensor& num_batches_tracked) const {
    TORCH_CHECK(momentum || !updates || num_batches_tracked, op_,
                ": expected num_batches_tracked when momentum is None, got None");
  }

  /// A result of the input's sizes and dtype.
  void image_result(Argument a) const {
    device(a);
    dtype(a, input_.scalar_type());
    TORCH_CHECK(a.tensor.sym_numel() == 0 || same_sizes(a.tensor, input_), op_, ": expected ", a.name, " of shape ",
                input_.sym_sizes(), " or without elements, got ", a.tensor.sym_sizes());
  }

  /// A result with a value per channel.
  void channel_result(Argument a, ScalarType wanted) const {
    device(a);
    dtype(a, wanted);
    const auto channels = input_.sym_size(1);
    TORCH_CHECK(a.tensor.sym_numel() == 0 || (a.tensor.dim() == 1 && a.tensor.sym_size(0) == channels), op_,
                ": expected ", a.name, " of shape [", channels, "] or without elements, got ", a.tensor.sym_sizes());
  }

  /// Results share no memory with each other nor with what is read; an image may be an image that is read.
  void result_memory(std::initializer_list<Argument> results, std::initializer_list<Argument> read) const {
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

  /// What the operator writes shares no memory with what it reads, nor with the rest of what it writes.
  void own_memory(std::initializer_list<std::pair<const char*, const OptionalTensor*>> written,
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

 private:
  void device(Argument a) const {
    TORCH_CHECK(a.tensor.device() == input_.device(), op_, ": expected ", a.name, " on device ", input_.device(),
                ", got ", a.tensor.device());
    strided(a);
  }

  void strided(Argument a) const {
    TORCH_CHECK(a.tensor.layout() == at::kStrided, op_, ": expected ", a.name, " to be a strided tensor, got ",
                a.tensor.layout());
    if (!has_memory(a.tensor)) return;
    const auto size = a.tensor.element_size();
    const auto beyond = reinterpret_cast<uintptr_t>(a.tensor.const_data_ptr()) % size;
    TORCH_CHECK(beyond == 0, op_, ": expected ", a.name, " at a multiple of ", size, " bytes, got an address ", beyond,
                " beyond one");
  }

  void channels(Argument a) const {
    TORCH_CHECK(a.tensor.dim() == 1 && a.tensor.sym_size(0) == input_.sym_size(1), op_, ": expected ", a.name,
                " of shape [", input_.sym_size(1), "], got ", a.tensor.sym_sizes());
  }

  void dtype(Argument a, ScalarType wanted) const {
    TORCH_CHECK(a.tensor.scalar_type() == wanted, op_, ": expected ", a.name, " of dtype ", dtype_name(wanted),
                ", got ", dtype_name(a.tensor.scalar_type()));
  }

  /// Wrappers, as composite operators see them, have storage without memory.
  static bool has_memory(const Tensor& tensor) {
    const auto* tensor_impl = tensor.unsafeGetTensorImpl();
    return !tensor.is_meta() && tensor.has_storage() && !tensor_impl->has_symbolic_sizes_strides() &&
           !tensor_impl->is_python_dispatch() && !tensor.key_set().has(c10::DispatchKey::Functionalize);
  }

  void disjoint(Argument a, Argument b) const {
    TORCH_CHECK(!overlap(a.tensor, b.tensor), op_, ": expected ", a.name,
                " to have memory of its own, but it overlaps ", b.name);
  }

  static bool same_sizes(const Tensor& a, const Tensor& b) {
    return a.dim() == b.dim() && a.sym_sizes() == b.sym_sizes();
  }

  const char* op_;
  const char* name_;
  const Tensor& input_;
};

/// What the forward operators have in common.
void forward_arguments(const char* op, const Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma,
                       const OptionalTensor& beta, const OptionalTensor& running_mean,
                       const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
                       const OptionalTensor& num_batches_tracked) {
  const Checker check(op, {"input", input});
  check.rank_and_dtype();
  if (residual) check.like_input({"residual", *residual});
  check.parameter("gamma", gamma);
  check.parameter("beta", beta);
  check.parameter("running_mean", running_mean);
  check.parameter("running_var", running_var);
  check.counter(num_batches_tracked);
  if (training) {
    const auto numel = input.sym_numel();
    TORCH_CHECK_VALUE(numel == 0 || numel != input.sym_size(1), op,
                      ": expected more than 1 value per channel when training, got input of shape ", input.sym_sizes());
    check.eps_of_batch(eps);
    check.momentum(momentum, running_mean || running_var, num_batches_tracked);
    check.own_memory(
        {{"running_mean", &running_mean}, {"running_var", &running_var}, {"num_batches_tracked", &num_batches_tracked}},
        {{"residual", &residual}, {"gamma", &gamma}, {"beta", &beta}});
  } else {
    TORCH_CHECK(running_mean, op, ": expected running_mean when training is False, got None");
    TORCH_CHECK(running_var, op, ": expected running_var when training is False, got None");
    check.eps_of_running_var(eps);
  }
}

void invertible(const char* op, Activation activation, double slope) {
  TORCH_CHECK_VALUE(is_invertible(activation, slope), op,
                    ": expected an activation with an inverse (identity, leaky_relu or elu with slope > 0), got ",
                    name_of(activation), " with slope ", slope);
}

/// The input is written, and has memory of its own for each value.
void input_memory(const char* op, const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                  const OptionalTensor& running_mean, const OptionalTensor& running_var) {
  const Checker check(op, {"input", input});
  check.result_memory({{"input", input}}, {{"gamma", or_none(gamma)},
                                           {"beta", or_none(beta)},
                                           {"running_mean", or_none(running_mean)},
                                           {"running_var", or_none(running_var)}});
}

/// What the backward operators with an activation have in common, but for the names of the statistics.
Checker act_backward_arguments(const char* op, const Tensor& grad_output, const Tensor& input,
                               const OptionalTensor& residual, const OptionalTensor& mask, const OptionalTensor& gamma,
                               const OptionalTensor& beta, Activation activation) {
  const Checker check(op, {"input", input});
  check.rank_and_dtype();
  check.like_input({"grad_output", grad_output});
  if (residual) check.like_input({"residual", *residual});
  check.mask(mask);
  const bool masked = mask && mask->sym_size(0) == (input.sym_numel() + 7) / 8;
  TORCH_CHECK(!residual || masked || !needs_only_bit(activation), op,
              ": expected mask instead of residual for relu, leaky_relu and relu6, got ",
              mask ? "an empty one" : "None");
  check.parameter("gamma", gamma);
  check.parameter("beta", beta);
  return check;
}

}  // namespace

void check_forward(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                   const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                   std::optional<double> momentum, double eps, const OptionalTensor& num_batches_tracked) {
  forward_arguments("batchnorm_forward", input, std::nullopt, gamma, beta, running_mean, running_var, training,
                    momentum, eps, num_batches_tracked);
}

Activation activation_named(const char* op, std::string_view name) {
  const auto* found = std::find(std::begin(kNames), std::end(kNames), name);
  if (found != std::end(kNames)) return static_cast<Activation>(found - std::begin(kNames));
  TORCH_CHECK_VALUE(false, op, ": expected activation identity, relu, leaky_relu, relu6, elu, silu or gelu_tanh, got ",
                    name);
}

std::string_view name_of(Activation activation) { return kNames[static_cast<size_t>(activation)]; }

void check_act_forward(const Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma,
                       const OptionalTensor& beta, const OptionalTensor& running_mean,
                       const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
                       const OptionalTensor& num_batches_tracked) {
  forward_arguments("batchnorm_act_forward", input, residual, gamma, beta, running_mean, running_var, training,
                    momentum, eps, num_batches_tracked);
}

void check_act_backward(const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual,
                        const OptionalTensor& mask, const OptionalTensor& gamma, const OptionalTensor& beta,
                        const Tensor& save_mean, const Tensor& save_invstd, Activation activation) {
  const Checker check =
      act_backward_arguments("batchnorm_act_backward", grad_output, input, residual, mask, gamma, beta, activation);
  check.statistic({"save_mean", save_mean});
  check.statistic({"save_invstd", save_invstd});
}

void check_act_apply(const Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma,
                     const OptionalTensor& beta, const Tensor& mean, const Tensor& invstd) {
  const Checker check("batchnorm_act_apply", {"input", input});
  check.rank_and_dtype();
  if (residual) check.like_input({"residual", *residual});
  check.parameter("gamma", gamma);
  check.parameter("beta", beta);
  check.statistic({"mean", mean});
  check.statistic({"invstd", invstd});
}

void check_act_backward_reduce(const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual,
                               const OptionalTensor& mask, const OptionalTensor& gamma, const OptionalTensor& beta,
                               const Tensor& mean, const Tensor& invstd, Activation activation) {
  const Checker check = act_backward_arguments("batchnorm_act_backward_reduce", grad_output, input, residual, mask,
                                               gamma, beta, activation);
  check.statistic({"mean", mean});
  check.statistic({"invstd", invstd});
}

void check_act_backward_apply(const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual,
                              const OptionalTensor& mask, const OptionalTensor& gamma, const OptionalTensor& beta,
                              const Tensor& mean, const Tensor& invstd, Activation activation, const Tensor& sum_dy,
                              const Tensor& sum_dy_xhat, const Tensor& count) {
  const Checker check = act_backward_arguments("batchnorm_act_backward_apply", grad_output, input, residual, mask,
                                               gamma, beta, activation);
  check.statistic({"mean", mean});
  check.statistic({"invstd", invstd});
  check.statistic({"sum_dy", sum_dy});
  check.statistic({"sum_dy_xhat", sum_dy_xhat});
  check.count({"count", count}, 1);
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

void check_act_forward_in_place(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                                const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
                                std::optional<double> momentum, double eps, Activation activation, double slope,
                                const OptionalTensor& num_batches_tracked) {
  const char* op = "batchnorm_act_forward_";
  invertible(op, activation, slope);
  forward_arguments(op, input, std::nullopt, gamma, beta, running_mean, running_var, training, momentum, eps,
                    num_batches_tracked);
  input_memory(op, input, gamma, beta, running_mean, running_var);
}

void check_sync_act_forward_in_place(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                                     const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                     std::optional<double> momentum, double eps, Activation activation, double slope,
                                     const OptionalTensor& num_batches_tracked, int64_t group_size) {
  const char* op = "sync_batchnorm_act_forward_";
  invertible(op, activation, slope);
  check_sync_forward(op, input, std::nullopt, gamma, beta, running_mean, running_var, momentum, eps,
                     num_batches_tracked, group_size);
  input_memory(op, input, gamma, beta, running_mean, running_var);
}

void check_act_apply_in_place(const Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta,
                              const Tensor& mean, const Tensor& invstd, Activation activation, double slope) {
  const char* op = "batchnorm_act_apply_";
  invertible(op, activation, slope);
  const Checker check(op, {"input", input});
  check.rank_and_dtype();
  check.parameter("gamma", gamma);
  check.parameter("beta", beta);
  check.statistic({"mean", mean});
  check.statistic({"invstd", invstd});
  check.result_memory({{"input", input}},
                      {{"gamma", or_none(gamma)}, {"beta", or_none(beta)}, {"mean", mean}, {"invstd", invstd}});
}

void check_act_recover(const Tensor& output, const Tensor& kept, const Tensor& kept_input, const OptionalTensor& gamma,
                       const OptionalTensor& beta, const Tensor& mean, const Tensor& invstd, Activation activation,
                       double slope) {
  const char* op = "batchnorm_act_recover";
  invertible(op, activation, slope);
  const Checker check(op, {"output", output});
  check.rank_and_dtype();
  check.parameter("gamma", gamma);
  check.parameter("beta", beta);
  check.statistic({"mean", mean});
  check.statistic({"invstd", invstd});
  check.kept({"kept", kept}, {"kept_input", kept_input});
}

void check_act_backward_from_output(const Tensor& grad_output, const Tensor& output, const Tensor& kept,
                                    const Tensor& kept_input, const OptionalTensor& gamma, const OptionalTensor& beta,
                                    const Tensor& save_mean, const Tensor& save_invstd, Activation activation,
                                    double slope) {
  const char* op = "batchnorm_act_backward_from_output";
  invertible(op, activation, slope);
  const Checker check(op, {"output", output});
  check.rank_and_dtype();
  check.like_input({"grad_output", grad_output});
  check.parameter("gamma", gamma);
  check.parameter("beta", beta);
  check.statistic({"save_mean", save_mean});
  check.statistic({"save_invstd", save_invstd});
  check.kept({"kept", kept}, {"kept_input", kept_input});
}

void check_sync_forward(const char* op, const Tensor& input, const OptionalTensor& residual,
                        const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
                        const OptionalTensor& running_var, std::optional<double> momentum, double eps,
                        const OptionalTensor& num_batches_tracked, int64_t group_size) {
  const Checker check(op, {"input", input});
  check.rank_and_dtype();
  if (residual) check.like_input({"residual", *residual});
  check.parameter("gamma", gamma);
  check.parameter("beta", beta);
  check.parameter("running_mean", running_mean);
  check.parameter("running_var", running_var);
  check.counter(num_batches_tracked);
  check.eps_of_batch(eps);
  check.momentum(momentum, running_mean || running_var, num_batches_tracked);
  check.own_memory(
      {{"running_mean", &running_mean}, {"running_var", &running_var}, {"num_batches_tracked", &num_batches_tracked}},
      {{"gamma", &gamma}, {"beta", &beta}});
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
  const auto wanted = [&](int i, const Tensor& result) -> const Tensor& { return output_mask[i] ? result : kNone; };
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
