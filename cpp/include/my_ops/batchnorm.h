// Batch normalization with the interface of torch::nn: same options, same names in the state, as my_ops.BatchNorm2d has
// in Python. ops.h has the operators themselves, and says which tensors they take and what they throw.
#pragma once

#include <torch/nn/functional/batchnorm.h>
#include <torch/nn/modules/batchnorm.h>

#include <optional>
#include <sstream>
#include <tuple>

#include "my_ops/ops.h"

namespace my_ops::nn {
namespace detail {

// torch::nn keeps tensors that are left out as undefined ones.
inline std::optional<at::Tensor> optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::make_optional(tensor) : std::nullopt;
}

}  // namespace detail

namespace functional {

/// Drop-in for torch::nn::functional::batch_norm: images [N, C, ...]; running statistics, options.weight() and
/// options.bias() of [C], each undefined if left out. If options.training(), the running statistics are updated.
inline at::Tensor batch_norm(const at::Tensor& input, const at::Tensor& running_mean, const at::Tensor& running_var,
                             const torch::nn::functional::BatchNormFuncOptions& options = {}) {
  return std::get<0>(ops::batchnorm_forward(input, detail::optional(options.weight()), detail::optional(options.bias()),
                                            detail::optional(running_mean), detail::optional(running_var),
                                            options.training(), options.momentum(), options.eps()));
}

}  // namespace functional

/// What BatchNorm1d, 2d and 3d share: torch's parameters, buffers and initialisation, and one call of the operator,
/// which also counts the batch.
template <size_t D, class Derived>
class BatchNormImplBase : public torch::nn::BatchNormImplBase<D, Derived> {
 public:
  using torch::nn::BatchNormImplBase<D, Derived>::BatchNormImplBase;

  at::Tensor forward(const at::Tensor& input) {
    this->_check_input_dim(input);
    const auto& options = this->options;
    const bool tracks = options.track_running_stats();
    const bool updates = this->is_training() && tracks;
    return std::get<0>(ops::batchnorm_forward(input, detail::optional(this->weight), detail::optional(this->bias),
                                              tracks ? detail::optional(this->running_mean) : std::nullopt,
                                              tracks ? detail::optional(this->running_var) : std::nullopt,
                                              this->is_training() || !tracks, options.momentum(), options.eps(),
                                              updates ? detail::optional(this->num_batches_tracked) : std::nullopt));
  }

  void pretty_print(std::ostream& stream) const override {
    std::ostringstream text;
    torch::nn::BatchNormImplBase<D, Derived>::pretty_print(text);
    stream << "my_ops::nn::" << text.str().substr(sizeof("torch::nn::") - 1);
  }

 protected:
  // [N, C] and [N, C, L] for D = 1, else [N, C] and D more.
  void _check_input_dim(const at::Tensor& input) override {
    const auto rank = static_cast<size_t>(input.dim());
    TORCH_CHECK(rank == D + 2 || (D == 1 && rank == 2), "BatchNorm", D, "d: expected input of rank ",
                D == 1 ? "2 or " : "", D + 2, ", got shape ", input.sizes());
  }
};

/// Drop-in for torch::nn::BatchNorm1d: input [N, C] or [N, C, L].
class BatchNorm1dImpl : public BatchNormImplBase<1, BatchNorm1dImpl> {
 public:
  using BatchNormImplBase<1, BatchNorm1dImpl>::BatchNormImplBase;
};
TORCH_MODULE(BatchNorm1d);

/// Drop-in for torch::nn::BatchNorm2d: input [N, C, H, W].
class BatchNorm2dImpl : public BatchNormImplBase<2, BatchNorm2dImpl> {
 public:
  using BatchNormImplBase<2, BatchNorm2dImpl>::BatchNormImplBase;
};
TORCH_MODULE(BatchNorm2d);

/// Drop-in for torch::nn::BatchNorm3d: input [N, C, D, H, W].
class BatchNorm3dImpl : public BatchNormImplBase<3, BatchNorm3dImpl> {
 public:
  using BatchNormImplBase<3, BatchNorm3dImpl>::BatchNormImplBase;
};
TORCH_MODULE(BatchNorm3d);

}  // namespace my_ops::nn
