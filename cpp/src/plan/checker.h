// The rules that the checks of the operators are made of. A message names operator, argument, what was expected and
// what came. Symbolic sizes are understood.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <optional>
#include <utility>

#include "plan/checks.h"

namespace my_ops::plan {

/// A tensor argument and its name in the schema.
struct Argument {
  const char* name;
  const at::Tensor& tensor;
};

/// The tensor, or an undefined one.
const at::Tensor& or_none(const OptionalTensor& tensor);

/// The checks of one operator. `input` is what the other arguments must go with.
class Checker {
 public:
  Checker(const char* op, Argument input) : op_(op), name_(input.name), input_(input.tensor) {}

  void rank_and_dtype(int64_t rank = 2) const;

  /// The statistics of R parts: [R, C], of an accumulation dtype.
  void parts() const;

  /// Same sizes, dtype and device as the input.
  void like_input(Argument a) const;

  /// gamma, beta, running statistics: [C], of the input's dtype or float32.
  void parameter(const char* name, const OptionalTensor& tensor) const;

  /// Running statistics beside float32 parts may be of any dtype whose statistics are float32.
  void running_statistic(const char* name, const OptionalTensor& tensor) const;

  /// Statistics and sums: [C], of the accumulation dtype.
  void statistic(Argument a) const;

  /// The same of every image: [N, C].
  void instance_statistic(Argument a) const;

  void count(Argument a, const c10::SymInt& parts) const;

  /// A bit for each element of the input, or nothing.
  void mask(const OptionalTensor& mask) const;

  /// k channels, and their values.
  void kept(Argument channels, Argument values) const;

  void counter(const OptionalTensor& num_batches_tracked) const;

  void eps_of_batch(double eps) const;

  void eps_of_running_var(double eps) const;

  void momentum(std::optional<double> momentum, bool updates, const OptionalTensor& num_batches_tracked) const;

  /// A result of the input's sizes and dtype.
  void image_result(Argument a) const;

  /// A result with a value per channel.
  void channel_result(Argument a, at::ScalarType wanted) const;

  /// Results share no memory with each other nor with what is read; an image may be an image that is read.
  void result_memory(std::initializer_list<Argument> results, std::initializer_list<Argument> read) const;

  /// What the operator writes shares no memory with what it reads, nor with the rest of what it writes.
  void own_memory(std::initializer_list<std::pair<const char*, const OptionalTensor*>> written,
                  std::initializer_list<std::pair<const char*, const OptionalTensor*>> read) const;

 private:
  void device(Argument a) const;

  void strided(Argument a) const;

  void channels(Argument a) const;

  void dtype(Argument a, at::ScalarType wanted) const;

  /// Wrappers, as composite operators see them, have storage without memory.
  static bool has_memory(const at::Tensor& tensor);

  void disjoint(Argument a, Argument b) const;

  static bool same_sizes(const at::Tensor& a, const at::Tensor& b);

  const char* op_;
  const char* name_;
  const at::Tensor& input_;
};

/// The tensors of a forward operator.
Checker forward_tensors(const char* op, const at::Tensor& input, const OptionalTensor& residual,
                        const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
                        const OptionalTensor& running_var, const OptionalTensor& num_batches_tracked);

/// What training with them needs besides.
void training_arguments(const Checker& check, const OptionalTensor& residual, const OptionalTensor& gamma,
                        const OptionalTensor& beta, const OptionalTensor& running_mean,
                        const OptionalTensor& running_var, std::optional<double> momentum, double eps,
                        const OptionalTensor& num_batches_tracked);

/// Both, and one value per channel refused, or what eval mode needs.
void forward_arguments(const char* op, const at::Tensor& input, const OptionalTensor& residual,
                       const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
                       const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
                       const OptionalTensor& num_batches_tracked);

}  // namespace my_ops::plan
