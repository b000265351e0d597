// Batch normalization with a residual and an activation on the CPU: the passes of batchnorm_kernel.cpp and of
// phases_kernel.cpp with an epilogue. Bytes moved, with x of B bytes: the forward passes read the residual besides (B)
// and write the mask (B/32 in float32); those of the backward pass read no more than without an activation as long as
// dz can be made from dy and x. Else the first one reads the mask or the residual and writes dz, which is the gradient
// of the residual anyway, and the second one is that of plain batch normalization over dz.
#include <ATen/TensorOperators.h>
#include <ATen/ops/elu_backward.h>
#include <ATen/ops/leaky_relu_backward.h>
#include <ATen/ops/log1p.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "cpu/coefficients.h"
#include "cpu/partials.h"
#include "cpu/schedule.h"
#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/invertible.h"
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
  const bool masked = act.residual.defined() && plan::needs_only_sign(act.activation);
  Tensor mask = at::detail::empty_cpu({masked ? (x.numel() + 7) / 8 : 0}, at::kByte);
  return mask.zero_();
}

/// y = act(z) in one pass over x, of all regions.
template <class T, class A = Accumulator<T>>
void apply_everywhere(const Tensor& x, const Tensor& y, const ForwardCoefficients<A>& coefficients,
                      const Epilogue<T>& epilogue) {
  if (x.numel() == 0) return;
  const Shape shape = plan::shape_of(x);
  const T* in = read<T>(x);
  T* out = write<T>(y);
  const bool stream = !y.is_same(x) && streams(y);
  for_regions(plan::elementwise_partition(shape, sizeof(T)), Order::forwards, [&](const Region& region, int64_t) {
    kernels_of<T>().act_apply(in, out, shape, region, coefficients, epilogue, stream);
  });
}

/// Statistics, coefficients and output in two passes over x.
template <class T, class A = Accumulator<T>>
void forward_training(const Tensor& x, const Tensor& y, const ForwardScratch<A>& scratch,
                      const ForwardChannels<A>& channels, const Epilogue<T>& epilogue) {
  const Shape shape = plan::shape_of(x);
  const Partition part = plan::reduction_partition(shape, sizeof(T));
  const Kernels<T>& kernels = kernels_of<T>();
  const T* in = read<T>(x);
  T* out = write<T>(y);
  const bool stream = streams(y);
  Partials partials(part);
  reduce_and_map(
      part,
      [&](const Region& region, int64_t k) { kernels.stats(in, shape, region, partials.first(k), partials.second(k)); },
      [&](int64_t c0, int64_t c1) {
        partials.merge_moments(c0, c1);
        kernels.finish_forward(channels, c0, c1, partials.first(0), partials.second(0), part.values);
      },
      [&](const Region& region) {
        kernels.act_apply(in, out, shape, region, scratch.coefficients(), epilogue, stream);
      });
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
  const int64_t channels = x.size(1);
  Tensor output = empty_image(x);
  Tensor save_mean = empty_statistic(x);
  Tensor save_invstd = empty_statistic(x);
  Tensor mask = empty_mask(x, act);
  visit_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    ForwardScratch<A> scratch(channels, gamma, beta, save_mean, save_invstd, eps);
    Epilogue<T> epilogue = act.epilogue<T>();
    if (mask.numel() > 0) epilogue.written = write<uint8_t>(mask);
    if (training && x.numel() > 0) {
      RunningStatistics<A> running(running_mean, running_var, momentum, num_batches_tracked);
      running.join(scratch.channels());
      forward_training<T>(x, output, scratch, scratch.channels(), epilogue);
      running.finish();
      return;
    }
    // Given statistics; those of no values are mean 0 and variance 0.
    const ChannelVector<A> mean(training ? std::nullopt : running_mean, channels, A(0));
    const ChannelVector<A> var(training ? std::nullopt : running_var, channels, A(0));
    kernels_of<T>().finish_given(scratch.channels(), 0, channels, mean.data(), var.data());
    apply_everywhere<T>(x, output, scratch.coefficients(), epilogue);
  });
  return {output, save_mean, save_invstd, mask};
}

/// Mean, invstd and coefficients of a batch, in one pass over x.
template <class T, class A = Accumulator<T>>
void batch_statistics(const Tensor& x, const ForwardChannels<A>& channels) {
  const Shape shape = plan::shape_of(x);
  const Partition part = plan::reduction_partition(shape, sizeof(T));
  const Kernels<T>& kernels = kernels_of<T>();
  const T* in = read<T>(x);
  Partials partials(part);
  reduce(
      part,
      [&](const Region& region, int64_t k) { kernels.stats(in, shape, region, partials.first(k), partials.second(k)); },
      [&](int64_t c0, int64_t c1) {
        partials.merge_moments(c0, c1);
        kernels.finish_forward(channels, c0, c1, partials.first(0), partials.second(0), part.values);
      });
}

/// Statistics, then what must be kept of x, then the output over x.
std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_forward_(
    Tensor& input, const OptionalTensor& gamma, const OptionalTensor& beta, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, bool training, std::optional<double> momentum, double eps,
    std::string_view activation, double slope, const OptionalTensor& num_batches_tracked) {
  const auto named = plan::activation_named("batchnorm_act_forward_", activation);
  plan::check_act_forward_in_place(input, gamma, beta, running_mean, running_var, training, momentum, eps, named, slope,
                                   num_batches_tracked);
  const Tensor x = plan::dense(input);
  const int64_t channels = x.size(1);
  Tensor save_mean = empty_statistic(x);
  Tensor save_invstd = empty_statistic(x);
  Tensor kept;
  Tensor kept_input;
  visit_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    ForwardScratch<A> scratch(channels, gamma, beta, save_mean, save_invstd, eps);
    if (training && x.numel() > 0) {
      RunningStatistics<A> running(running_mean, running_var, momentum, num_batches_tracked);
      running.join(scratch.channels());
      batch_statistics<T>(x, scratch.channels());
      running.finish();
    } else {
      const ChannelVector<A> mean(training ? std::nullopt : running_mean, channels, A(0));
      const ChannelVector<A> var(training ? std::nullopt : running_var, channels, A(0));
      kernels_of<T>().finish_given(scratch.channels(), 0, channels, mean.data(), var.data());
    }
    kept = plan::channels_to_keep(x, gamma, beta, save_mean, save_invstd, named, slope);
    kept_input = x.index_select(1, kept);
    apply_everywhere<T>(x, x, scratch.coefficients(), Epilogue<T>{named, static_cast<A>(slope)});
  });
  if (!x.is_same(input)) input.copy_(x);
  return {save_mean, save_invstd, kept, kept_input};
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
    apply_everywhere<T>(x, output, {means.data(), z.get().scale, z.get().shift}, epilogue);
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
    if (mask && mask->numel() > 0 && plan::needs_only_sign(activation)) act.mask = mask->contiguous();
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
        stream_(dx.defined() && streams(dx)),
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

/// What the backward pass is asked for; undefined tensors are not wanted.
struct Gradients {
  Tensor input;
  Tensor residual;
  Tensor gamma;
  Tensor beta;
};

/// Training: both sums, then dx, which depends on them. Eval: dx depends on dz alone, so that one visit does both.
template <class T, class A = Accumulator<T>>
void backward_passes(const BackwardArguments& arguments, bool training, const Gradients& wanted) {
  const bool keeps = wanted.residual.defined() || (arguments.reads_more() && wanted.input.defined());
  const Tensor dz = wanted.residual.defined() ? wanted.residual : keeps ? empty_image(arguments.x) : Tensor();
  BackwardRegions<T> regions(arguments, dz, wanted.input);
  const Shape& shape = regions.shape();
  A* dgamma = wanted.gamma.defined() ? write<A>(wanted.gamma) : nullptr;
  A* dbeta = wanted.beta.defined() ? write<A>(wanted.beta) : nullptr;
  const BackwardCoefficients<A> k = training ? regions.scratch().training() : regions.scratch().eval(shape.c);
  const auto map = [&](const Region& region) { regions.map(region, k); };
  if (!training && !dgamma && !dbeta && !keeps) {
    for_regions(plan::elementwise_partition(shape, sizeof(T)), Order::forwards,
                [&](const Region& region, int64_t) { map(region); });
    return;
  }
  const Partition part = plan::reduction_partition(shape, (keeps ? 3 : 2) * sizeof(T));
  Partials partials(part);
  const auto reduce_region = [&](const Region& region, int64_t chunk) {
    regions.reduce(region, partials.first(chunk), partials.second(chunk));
    if (!training && wanted.input.defined()) map(region);
  };
  const auto finish = [&](int64_t c0, int64_t c1) {
    partials.add_up(c0, c1);
    if (dbeta) std::copy(partials.first(0) + c0, partials.first(0) + c1, dbeta + c0);
    if (dgamma) std::copy(partials.second(0) + c0, partials.second(0) + c1, dgamma + c0);
    if (training && wanted.input.defined()) {
      kernels_of<T>().finish_backward(regions.scratch().channels(), c0, c1, partials.first(0), partials.second(0),
                                      part.values);
    }
  };
  if (training && wanted.input.defined()) {
    reduce_and_map(part, reduce_region, finish, map);
  } else {
    reduce(part, reduce_region, finish);
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batchnorm_act_backward(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual, const OptionalTensor& mask,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd,
    bool training, std::string_view activation, double slope, std::array<bool, 4> output_mask) {
  const auto named = plan::activation_named("batchnorm_act_backward", activation);
  plan::check_act_backward(grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd, named);
  const BackwardArguments arguments(grad_output, input, residual, mask, gamma, beta, save_mean, save_invstd, named,
                                    slope);
  const Tensor& x = arguments.x;
  const auto image = [&](bool is_wanted) { return is_wanted ? empty_image(x) : Tensor(); };
  const auto vector = [&](bool is_wanted) { return is_wanted ? empty_statistic(x) : Tensor(); };
  const Gradients wanted{image(output_mask[0]), image(output_mask[1]), vector(output_mask[2]), vector(output_mask[3])};
  if (x.numel() == 0) {
    for (const Tensor& sum : {wanted.gamma, wanted.beta}) {
      if (sum.defined()) sum.zero_();
    }
  } else if (std::find(output_mask.begin(), output_mask.end(), true) != output_mask.end()) {
    visit_element(x.scalar_type(),
                  [&](auto element) { backward_passes<decltype(element)>(arguments, training, wanted); });
  }
  const auto as_gamma = [&](const Tensor& gradient) {
    const bool other = gamma && gradient.defined() && gradient.scalar_type() != gamma->scalar_type();
    return other ? gradient.to(gamma->scalar_type()) : gradient;
  };
  return {wanted.input, wanted.residual, as_gamma(wanted.gamma), as_gamma(wanted.beta)};
}

std::tuple<Tensor, Tensor> batchnorm_act_backward_reduce(const Tensor& grad_output, const Tensor& input,
                                                         const OptionalTensor& residual, const OptionalTensor& mask,
                                                         const OptionalTensor& gamma, const OptionalTensor& beta,
                                                         const Tensor& mean, const Tensor& invstd,
                                                         std::string_view activation, double slope) {
  const auto named = plan::activation_named("batchnorm_act_backward_reduce", activation);
  plan::check_act_backward_reduce(grad_output, input, residual, mask, gamma, beta, mean, invstd, named);
  const BackwardArguments arguments(grad_output, input, residual, mask, gamma, beta, mean, invstd, named, slope);
  Tensor sum_dy = empty_statistic(arguments.x);
  Tensor sum_dy_xhat = empty_statistic(arguments.x);
  if (arguments.x.numel() == 0) return {sum_dy.zero_(), sum_dy_xhat.zero_()};
  visit_element(arguments.x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    const BackwardRegions<T> regions(arguments, Tensor(), Tensor());
    const Partition part = plan::reduction_partition(regions.shape(), 2 * sizeof(T));
    Partials partials(part);
    reduce(
        part, [&](const Region& region, int64_t k) { regions.reduce(region, partials.first(k), partials.second(k)); },
        [&](int64_t c0, int64_t c1) {
          partials.add_up(c0, c1);
          std::copy(partials.first(0) + c0, partials.first(0) + c1, write<A>(sum_dy) + c0);
          std::copy(partials.second(0) + c0, partials.second(0) + c1, write<A>(sum_dy_xhat) + c0);
        });
  });
  return {sum_dy, sum_dy_xhat};
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

/// x - mean from y = act(z), z = (x - mean) * gamma * invstd + beta: the inverse of act, which may round to y's dtype,
/// then that of the affine map; of kept channels from their input.
Tensor centered_input(const Tensor& y, const Tensor& kept, const Tensor& kept_input, const OptionalTensor& gamma,
                      const OptionalTensor& beta, const Tensor& mean, const Tensor& invstd, Activation activation,
                      double slope) {
  Tensor z = y;
  if (activation == Activation::elu) {
    const Tensor wide = y.to(mean.scalar_type());
    z = plan::dense_like(at::where(wide > 0, wide, at::log1p(wide / slope)).to(y.scalar_type()), y);
  }
  Tensor centered = empty_image(y);
  visit_element(y.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    const int64_t channels = y.size(1);
    const Tensor zeros = at::zeros({3, channels}, mean.options());
    if (activation == Activation::leaky_relu) {
      const Tensor ones = at::ones({channels}, mean.options());
      const A* zero = read<A>(zeros);
      apply_everywhere<T>(y, centered, {zero, read<A>(ones), zero}, Epilogue<T>{activation, static_cast<A>(1 / slope)});
      z = centered;
    }
    ZCoefficients<A> affine(channels, gamma, beta, invstd);
    const auto k = affine.get();
    Scratch<A> inverse(channels);
    for (int64_t c = 0; c < channels; ++c) inverse[c] = A(1) / k.scale[c];
    apply_everywhere<T>(z, centered, {k.shift, inverse, read<A>(zeros)}, Epilogue<T>{Activation::identity, A(0)});
  });
  if (kept.size(0) > 0) {
    std::vector<int64_t> sizes(y.dim(), 1);
    sizes[1] = -1;
    const Tensor means = mean.index_select(0, kept).view(sizes);
    centered.index_copy_(1, kept, (kept_input.to(mean.scalar_type()) - means).to(y.scalar_type()));
  }
  return centered;
}

/// dz = dy * act'(z), from y: computed back, z could have the other sign where it is nearly 0.
Tensor gradient_of_z(const Tensor& dy, const Tensor& y, Activation activation, double slope) {
  switch (activation) {
    case Activation::leaky_relu:
      return at::leaky_relu_backward(dy, y, slope, /*self_is_result=*/true);
    case Activation::elu:
      return at::elu_backward(dy, slope, /*scale=*/1, /*input_scale=*/1, /*is_result=*/true, y);
    default:
      return dy;
  }
}

/// Plain batch normalization's backward pass of dz over x - mean, whose mean is 0.
std::tuple<Tensor, Tensor, Tensor> batchnorm_act_backward_from_output(
    const Tensor& grad_output, const Tensor& output, const Tensor& kept, const Tensor& kept_input,
    const OptionalTensor& gamma, const OptionalTensor& beta, const Tensor& save_mean, const Tensor& save_invstd,
    bool training, std::string_view activation, double slope, ops::OutputMask output_mask) {
  const auto named = plan::activation_named("batchnorm_act_backward_from_output", activation);
  plan::check_act_backward_from_output(grad_output, output, kept, kept_input, gamma, beta, save_mean, save_invstd,
                                       named, slope);
  const Tensor x =
      centered_input(plan::dense(output), kept, kept_input, gamma, beta, save_mean, save_invstd, named, slope);
  return ops::batchnorm_backward(gradient_of_z(grad_output, output, named, slope), x, gamma, at::zeros_like(save_mean),
                                 save_invstd, training, output_mask);
}

}  // namespace
}  // namespace my_ops::cpu

TORCH_LIBRARY_IMPL(my_ops, CPU, m) {
  m.impl("batchnorm_act_forward", &my_ops::cpu::batchnorm_act_forward);
  m.impl("batchnorm_act_backward", &my_ops::cpu::batchnorm_act_backward);
  m.impl("batchnorm_act_forward_", &my_ops::cpu::batchnorm_act_forward_);
  m.impl("batchnorm_act_backward_from_output", &my_ops::cpu::batchnorm_act_backward_from_output);
  m.impl("batchnorm_act_apply", &my_ops::cpu::batchnorm_act_apply);
  m.impl("batchnorm_act_backward_reduce", &my_ops::cpu::batchnorm_act_backward_reduce);
  m.impl("batchnorm_act_backward_apply", &my_ops::cpu::batchnorm_act_backward_apply);
}
