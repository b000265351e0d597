// Batch normalization with a residual and an activation on the CPU: the passes of batchnorm_kernel.cpp and of
// phases_kernel.cpp with an epilogue. Bytes moved, with x of B bytes: the forward passes read the residual besides (B)
// and write the mask (B/32 in float32); those of the backward pass read no more than without an activation as long as
// dz can be made from dy and x. Else the first one reads the mask or the residual and writes dz, which is the gradient
// of the residual anyway, and the second one is that of plain batch normalization over dz.
#include <torch/library.h>

#include <algorithm>

#include "cpu/act_map.h"
#include "cpu/backward_passes.h"
#include "cpu/forward_passes.h"
#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/outputs.h"
#include "plan/problem.h"

namespace my_ops::cpu {
namespace {

using at::Tensor;
using ops::OptionalTensor;
using plan::Activation;
using plan::Shape;

/// The arguments of an activation, dense and laid out as x. What is absent is undefined.
struct Act {
  Activation activation;
  double slope;
  Tensor residual;
  Tensor mask;

  Act(const Tensor& x, Activation activation, double slope, const OptionalTensor& residual)
      : activation(activation), slope(slope) {
    if (residual) this->residual = plan::dense_like(*residual, x);
  }

  template <class T>
  Epilogue<T> epilogue() const {
    Epilogue<T> k{activation, static_cast<Accumulator<T>>(slope)};
    if (residual.defined()) k.residual = read<T>(residual);
    return k;
  }
};

/// The mask of a forward pass: all zeros, or empty.
Tensor empty_mask(const Tensor& x, const Act& act) {
  const bool masked = act.residual.defined() && plan::needs_only_bit(act.activation);
  Tensor mask = at::detail::empty_cpu({masked ? (x.numel() + 7) / 8 : 0}, at::kByte);
  return masked ? mask.zero_() : mask;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_forward(
    const Tensor& input, const OptionalTensor& residual, const OptionalTensor& gamma, const OptionalTensor& beta,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, bool training,
    std::optional<double> momentum, double eps, std::string_view activation, double slope,
    const OptionalTensor& num_batches_tracked) {
  const auto named = plan::activation_named("batchnorm_act_forward", activation);
  plan::check_act_forward(input, residual, gamma, beta, running_mean, running_var, training, momentum, eps,
                          num_batches_tracked);
  const Tensor x = plan::dense(input);
  const Act act(x, named, slope, residual);
  Tensor output = empty_image(x);
  Tensor save_mean = empty_statistic(x);
  Tensor save_invstd = empty_statistic(x);
  Tensor mask = empty_mask(x, act);
  visit_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    ForwardScratch<A> scratch(x.size(1), gamma, beta, save_mean, save_invstd, eps);
    Epilogue<T> epilogue = act.epilogue<T>();
    if (mask.numel() > 0) epilogue.written = write<uint8_t>(mask);
    forward_passes<T>(x, scratch, {running_mean, running_var, training, momentum, num_batches_tracked},
                      act_map<T>(x, output, scratch.coefficients(), epilogue))
        .finish();
  });
  return {output, save_mean, save_invstd, mask};
}

std::tuple<Tensor, Tensor> batchnorm_act_apply(const Tensor& input, const OptionalTensor& residual,
                                               const OptionalTensor& gamma, const OptionalTensor& beta,
                                               const Tensor& mean, const Tensor& invstd, std::string_view activation,
                                               double slope) {
  const auto named = plan::activation_named("batchnorm_act_apply", activation);
  plan::check_act_apply(input, residual, gamma, beta, mean, invstd);
  const Tensor x = plan::dense(input);
  const Act act(x, named, slope, residual);
  Tensor output = empty_image(x);
  Tensor mask = empty_mask(x, act);
  visit_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    ZCoefficients<A> z(x.size(1), gamma, beta, invstd);
    const ChannelVector<A> means(mean);
    Epilogue<T> epilogue = act.epilogue<T>();
    if (mask.numel() > 0) epilogue.written = write<uint8_t>(mask);
    map_everywhere<T>(x, act_map<T>(x, output, {means.data(), z.get().scale, z.get().shift}, epilogue));
  });
  return {output, mask};
}

/// What a backward pass reads, dense.
struct BackwardArguments {
  Tensor dy;
  Tensor x;
  Act act;
  const OptionalTensor& gamma;
  const OptionalTensor& beta;
  const Tensor& mean;
  const Tensor& invstd;

  BackwardArguments(const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual,
                    const OptionalTensor& mask, const OptionalTensor& gamma, const OptionalTensor& beta,
                    const Tensor& mean, const Tensor& invstd, Activation activation, double slope)
      : x(plan::dense(input)),
        act(x, activation, slope, activation == Activation::identity ? std::nullopt : residual),
        gamma(gamma),
        beta(beta),
        mean(mean),
        invstd(invstd) {
    dy = plan::dense_like(grad_output, x);
    if (mask && mask->numel() > 0 && plan::needs_only_bit(activation)) act.mask = mask->contiguous();
  }

  /// Whether dz needs more than dy and x: then it is written by the first pass, for the second.
  bool reads_more() const { return act.residual.defined() || act.mask.defined(); }
};

/// The passes of a backward operator, on a region.
template <class T>
class BackwardRegions {
 public:
  using A = Accumulator<T>;

  BackwardRegions(const BackwardArguments& arguments, const Tensor& dz, const Tensor& dx)
      : shape_(plan::shape_of(arguments.x)),
        dy_(read<T>(arguments.dy)),
        x_(read<T>(arguments.x)),
        dx_(dx.defined() ? write<T>(dx) : nullptr),
        stream_(dx.defined() &&
                streams(dx, {dy_, x_, dz.defined() && !dz.is_same(arguments.dy) ? dz.const_data_ptr() : nullptr})),
        scratch_(shape_.c, arguments.gamma, arguments.mean, arguments.invstd),
        z_(shape_.c, arguments.gamma, arguments.beta, arguments.invstd),
        epilogue_(arguments.act.epilogue<T>()) {
    epilogue_.z = z_.get();
    if (arguments.act.mask.defined()) epilogue_.mask = read<uint8_t>(arguments.act.mask);
    if (dz.defined()) epilogue_.dz = write<T>(dz);
  }

  const Shape& shape() const { return shape_; }
  BackwardScratch<A>& scratch() { return scratch_; }

  /// Both sums of dz; dz, where there is a tensor for it.
  void reduce(const Region& region, double* sum_dz, double* sum_dz_xhat) const {
    kernels_of<T>().act_backward_reduce(dy_, x_, shape_, region, scratch_.mean(), scratch_.invstd(), epilogue_, sum_dz,
                                        sum_dz_xhat);
  }

  /// dx from dz, if that was kept, else from dy.
  void map(const Region& region, const BackwardCoefficients<A>& k) const {
    if (epilogue_.dz) {
      kernels_of<T>().backward_apply(epilogue_.dz, x_, dx_, shape_, region, k, stream_);
    } else {
      kernels_of<T>().act_backward_apply(dy_, x_, dx_, shape_, region, k, epilogue_, stream_);
    }
  }

 private:
  Shape shape_;
  const T* dy_;
  const T* x_;
  T* dx_;
  bool stream_;
  BackwardScratch<A> scratch_;
  ZCoefficients<A> z_;
  Epilogue<T> epilogue_;
};

/// All of a backward pass. `taken`, where defined, is dy, and gives its memory to the gradient of the residual, if that
/// is wanted, else to that of the input: what is read there is read before the result takes its place.
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const BackwardArguments& arguments, bool training,
                                                    std::array<bool, 4> output_mask, const Tensor& taken) {
  const Tensor& x = arguments.x;
  const OptionalTensor& gamma = arguments.gamma;
  const bool keeps = output_mask[1] || (arguments.reads_more() && output_mask[0]);
  const bool input_takes = taken.defined() && output_mask[0] && !output_mask[1];
  Gradients wanted = empty_gradients(x, output_mask[0] && !input_takes, output_mask[2], output_mask[3]);
  if (input_takes) wanted.input = taken;
  Tensor dz;
  if (keeps) dz = taken.defined() ? taken : empty_image(x);
  if (x.numel() == 0) {
    wanted.zero();
  } else if (wanted.any() || keeps) {
    visit_element(x.scalar_type(), [&](auto element) {
      using T = decltype(element);
      BackwardRegions<T> regions(arguments, dz, wanted.input);
      const auto k = training ? regions.scratch().training() : regions.scratch().eval(regions.shape().c);
      backward_passes<T>(
          regions.shape(), (keeps ? 3 : 2) * sizeof(T), training, keeps, wanted,
          [&](const Region& region, double* sum_dz, double* sum_dz_xhat) {
            regions.reduce(region, sum_dz, sum_dz_xhat);
          },
          [&](int64_t c0, int64_t c1, const double* sum_dz, const double* sum_dz_xhat, int64_t count) {
            kernels_of<T>().finish_backward(regions.scratch().channels(), c0, c1, sum_dz, sum_dz_xhat, count);
          },
          [&](const Region& region) { regions.map(region, k); });
    });
  }
  return {wanted.input, output_mask[1] ? dz : Tensor(), as_gamma(wanted.gamma, gamma), as_gamma(wanted.beta, gamma)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_backward(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual, const OptionalTensor& mask,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd,
    bool training, std::string_view activation, double slope, std::array<bool, 4> output_mask) {
  const auto named = plan::activation_named("batchnorm_act_backward", activation);
  plan::check_act_backward(grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd, named);
  const BackwardArguments arguments(grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd, named,
                                    slope);
  return backward(arguments, training, output_mask, Tensor());
}

std::tuple<Tensor, Tensor, Tensor> batchnorm_act_backward_(Tensor& grad_output, const Tensor& input,
                                                           const OptionalTensor& residual, const OptionalTensor& mask,
                                                           const OptionalTensor& gamma, const OptionalTensor& beta,
                                                           const Tensor& save_mean, const Tensor& save_invstd,
                                                           bool training, std::string_view activation, double slope,
                                                           std::array<bool, 4> output_mask) {
  const auto named = plan::activation_named("batchnorm_act_backward_", activation);
  plan::check_act_backward_in_place(grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd, named);
  const BackwardArguments arguments(grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd, named,
                                    slope);
  auto [dx, dz, dgamma, dbeta] = backward(arguments, training, output_mask, arguments.dy);
  const Tensor& image = output_mask[1] ? dz : dx;
  if (image.defined()) plan::deliver(image, grad_output);
  return {output_mask[1] ? dx : Tensor(), dgamma, dbeta};
}

std::tuple<Tensor, Tensor> batchnorm_act_backward_reduce(const Tensor& grad_output, const Tensor& input,
                                                         const OptionalTensor& residual, const OptionalTensor& mask,
                                                         const OptionalTensor& gamma, const OptionalTensor& beta,
                                                         const Tensor& mean, const Tensor& invstd,
                                                         std::string_view activation, double slope) {
  const auto named = plan::activation_named("batchnorm_act_backward_reduce", activation);
  plan::check_act_backward_reduce(grad_output, input, residual, mask, gamma, beta, mean, invstd, named);
  const BackwardArguments arguments(grad_output, input, residual, mask, gamma, beta, mean, invstd, named, slope);
  const Gradients sums = empty_gradients(arguments.x, false, true, true);
  if (arguments.x.numel() == 0) {
    sums.zero();
  } else {
    visit_element(arguments.x.scalar_type(), [&](auto element) {
      using T = decltype(element);
      const BackwardRegions<T> regions(arguments, Tensor(), Tensor());
      backward_sums<T>(regions.shape(), 2 * sizeof(T), sums,
                       [&](const Region& region, double* sum_dz, double* sum_dz_xhat) {
                         regions.reduce(region, sum_dz, sum_dz_xhat);
                       });
    });
  }
  return {sums.beta, sums.gamma};
}

/// Region by region, dz from dy as in a reduction, whose sums nobody needs, then dx from dz, which is in the cache.
std::tuple<Tensor, Tensor> batchnorm_act_backward_apply(const Tensor& grad_output, const Tensor& input,
                                                        const OptionalTensor& residual, const OptionalTensor& mask,
                                                        const OptionalTensor& gamma, const OptionalTensor& beta,
                                                        const Tensor& mean, const Tensor& invstd,
                                                        std::string_view activation, double slope, const Tensor& sum_dy,
                                                        const Tensor& sum_dy_xhat, const Tensor& count) {
  const char* op = "batchnorm_act_backward_apply";
  const auto named = plan::activation_named(op, activation);
  plan::check_act_backward_apply(grad_output, input, residual, mask, gamma, beta, mean, invstd, named, sum_dy,
                                 sum_dy_xhat, count);
  const BackwardArguments arguments(grad_output, input, residual, mask, gamma, beta, mean, invstd, named, slope);
  Tensor grad_input = empty_image(arguments.x);
  Tensor grad_residual = empty_image(arguments.x);
  if (arguments.x.numel() == 0) return {grad_input, grad_residual};
  const int64_t values = *read<int64_t>(count);
  TORCH_CHECK(values > 0, op, ": expected count of 1 or more, got ", values);
  visit_element(arguments.x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    BackwardRegions<T> regions(arguments, grad_residual, grad_input);
    const Shape& shape = regions.shape();
    const Tensor sums = sum_dy.to(at::kDouble).contiguous();
    const Tensor sums_xhat = sum_dy_xhat.to(at::kDouble).contiguous();
    kernels_of<T>().finish_backward(regions.scratch().channels(), 0, shape.c, read<double>(sums),
                                    read<double>(sums_xhat), values);
    const Partition part = plan::reduction_partition(shape, 4 * sizeof(T));
    Partials partials(part);
    const auto k = regions.scratch().training();
    for_regions(part, Order::forwards, [&](const Region& region, int64_t chunk) {
      regions.reduce(region, partials.first(chunk), partials.second(chunk));
      regions.map(region, k);
    });
  });
  return {grad_input, grad_residual};
}

}  // namespace
}  // namespace my_ops::cpu

TORCH_LIBRARY_IMPL(my_ops, CPU, m) {
  m.impl("batchnorm_act_forward", &my_ops::cpu::batchnorm_act_forward);
  m.impl("batchnorm_act_backward", &my_ops::cpu::batchnorm_act_backward);
  m.impl("batchnorm_act_backward_", &my_ops::cpu::batchnorm_act_backward_);
  m.impl("batchnorm_act_apply", &my_ops::cpu::batchnorm_act_apply);
  m.impl("batchnorm_act_backward_reduce", &my_ops::cpu::batchnorm_act_backward_reduce);
  m.impl("batchnorm_act_backward_apply", &my_ops::cpu::batchnorm_act_backward_apply);
}
