// Instance norm on the CPU: the passes of batch norm over images that are problems of their own. Contiguous, these are
// N*C channels of S values; channels last, N problems of S rows. gamma and beta are read again for every image.
#include <torch/library.h>

#include <algorithm>

#include "cpu/backward_passes.h"
#include "cpu/coefficients.h"
#include "cpu/partials.h"
#include "cpu/schedule.h"
#include "math/normalization.h"
#include "my_ops/ops.h"
#include "plan/checks.h"
#include "plan/problem.h"

namespace my_ops::cpu {
namespace {

using at::Tensor;
using ops::OptionalTensor;
using ops::OutputMask;
using plan::Shape;

/// body(first, c0, c1) for the results i0..i1-1 of N*C: image after image, channels c0..c1-1 of the one whose results
/// begin at `first`.
template <class Body>
void for_images(int64_t i0, int64_t i1, int64_t channels, Body body) {
  for (int64_t first = i0 / channels * channels; first < i1; first += channels) {
    body(first, std::max(i0 - first, int64_t{0}), std::min(i1 - first, channels));
  }
}

/// Adds the results of all images up, in their order, in the place of the first.
void add_images(double* results, int64_t images, int64_t channels) {
  for (int64_t n = 1; n < images; ++n) kernel_table().add(results, results + n * channels, channels);
}

/// running <- (1 - momentum) * running + momentum * total * share
template <class A>
void update(const WritableChannelVector<A>& running, const double* total, double share, double momentum,
            int64_t channels) {
  A* values = running.data();
  if (!values) return;
  for (int64_t c = 0; c < channels; ++c) {
    values[c] = static_cast<A>(math::update_running<double>(values[c], total[c] * share, momentum));
  }
  running.write_back();
}

Tensor empty_matrix(const Tensor& x) {
  return at::detail::empty_cpu({x.size(0), x.size(1)}, plan::accumulation_dtype(x.scalar_type()));
}

/// Statistics, coefficients and output in two passes over x; (mean, M2) of all images are left in `partials`.
template <class T, class A = Accumulator<T>>
void forward_passes(const Tensor& input, const Tensor& output, const Partition& part, ForwardScratch<A>& scratch,
                    Partials& partials) {
  const Shape shape = plan::instance_shape_of(input);
  const Kernels<T>& kernels = kernels_of<T>();
  const T* x = read<T>(input);
  T* y = write<T>(output);
  const bool stream = streams(output, {x});
  reduce_and_map(
      part,
      [&](const Region& region, int64_t k) {
        const int64_t first = part.first_result(region);
        kernels.stats(x, shape, region, partials.first(k) + first, partials.second(k) + first);
      },
      [&](int64_t i0, int64_t i1) {
        partials.merge_moments(i0, i1);
        for_images(i0, i1, input.size(1), [&](int64_t first, int64_t c0, int64_t c1) {
          kernels.finish_forward(scratch.channels_of_image(first), c0, c1, partials.first(0) + first,
                                 partials.second(0) + first, part.values);
        });
      },
      [&](const Region& region) {
        kernels.apply(x, y, shape, region, scratch.coefficients(part.first_result(region)), stream);
      });
}

std::tuple<Tensor, Tensor, Tensor> instancenorm_forward(const Tensor& input, const OptionalTensor& gamma,
                                                        const OptionalTensor& beta, const OptionalTensor& running_mean,
                                                        const OptionalTensor& running_var, double momentum,
                                                        double eps) {
  plan::check_instance_forward(input, gamma, beta, running_mean, running_var, eps);
  const Tensor x = plan::dense(input);
  const int64_t images = x.size(0);
  const int64_t channels = x.size(1);
  Tensor output = empty_image(x);
  Tensor save_mean = empty_matrix(x);
  Tensor save_invstd = empty_matrix(x);
  visit_element(x.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Accumulator<T>;
    if (x.numel() == 0) {
      save_mean.zero_();
      save_invstd.fill_(math::inverse_std(0.0, eps));
      return;
    }
    const Partition part = plan::instance_partition(plan::instance_shape_of(x), sizeof(T));
    ForwardScratch<A> scratch(channels, gamma, beta, save_mean, save_invstd, eps, images);
    Partials partials(part);
    const WritableChannelVector<A> mean(running_mean);
    const WritableChannelVector<A> var(running_var);
    forward_passes<T>(x, output, part, scratch, partials);
    if (!running_mean && !running_var) return;
    for (double* results : {partials.first(0), partials.second(0)}) add_images(results, images, channels);
    const auto share = 1.0 / static_cast<double>(images);
    update(mean, partials.first(0), share, momentum, channels);
    update(var, partials.second(0), share / static_cast<double>(part.values - 1), momentum, channels);
  });
  return {output, save_mean, save_invstd};
}

/// Both sums of every image, then dx, which depends on them.
template <class T, class A = Accumulator<T>>
void backward_passes(const Tensor& grad_output, const Tensor& input, const OptionalTensor& gamma,
                     const Tensor& save_mean, const Tensor& save_invstd, const Gradients& wanted) {
  const Shape shape = plan::instance_shape_of(input);
  const Partition part = plan::instance_partition(shape, 2 * sizeof(T));
  const int64_t images = input.size(0);
  const int64_t channels = input.size(1);
  const Kernels<T>& kernels = kernels_of<T>();
  const T* dy = read<T>(grad_output);
  const T* x = read<T>(input);
  BackwardScratch<A> scratch(channels, gamma, save_mean, save_invstd, images);
  Partials partials(part);

  const auto reduce_region = [&](const Region& region, int64_t k) {
    const int64_t first = part.first_result(region);
    kernels.backward_reduce(dy, x, shape, region, scratch.mean() + first, scratch.invstd() + first,
                            partials.first(k) + first, partials.second(k) + first);
  };
  const auto finish = [&](int64_t i0, int64_t i1) {
    partials.add_up(i0, i1);
    if (!wanted.input.defined()) return;
    for_images(i0, i1, channels, [&](int64_t first, int64_t c0, int64_t c1) {
      kernels.finish_backward(scratch.channels_of_image(first), c0, c1, partials.first(0) + first,
                              partials.second(0) + first, part.values);
    });
  };
  if (wanted.input.defined()) {
    T* dx = write<T>(wanted.input);
    const bool stream = streams(wanted.input, {dy, x});
    reduce_and_map(part, reduce_region, finish, [&](const Region& region) {
      kernels.backward_apply(dy, x, dx, shape, region, scratch.training(part.first_result(region)), stream);
    });
  } else {
    reduce(part, reduce_region, finish);
  }
  const auto deliver = [&](double* sums, const Tensor& gradient) {
    if (!gradient.defined()) return;
    add_images(sums, images, channels);
    std::copy(sums, sums + channels, write<A>(gradient));
  };
  deliver(partials.first(0), wanted.beta);
  deliver(partials.second(0), wanted.gamma);
}

std::tuple<Tensor, Tensor, Tensor> instancenorm_backward(const Tensor& grad_output, const Tensor& input,
                                                         const OptionalTensor& gamma, const Tensor& save_mean,
                                                         const Tensor& save_invstd, OutputMask output_mask) {
  plan::check_instance_backward(grad_output, input, gamma, save_mean, save_invstd);
  const Tensor x = plan::dense(input);
  const Gradients wanted = empty_gradients(x, output_mask[0], output_mask[1], output_mask[2]);
  if (x.numel() == 0) {
    wanted.zero();
  } else if (wanted.any()) {
    visit_element(x.scalar_type(), [&](auto element) {
      backward_passes<decltype(element)>(plan::dense_like(grad_output, x), x, gamma, save_mean, save_invstd, wanted);
    });
  }
  return {wanted.input, as_gamma(wanted.gamma, gamma), as_gamma(wanted.beta, gamma)};
}

}  // namespace
}  // namespace my_ops::cpu

TORCH_LIBRARY_IMPL(my_ops, CPU, m) {
  m.impl("instancenorm_forward", &my_ops::cpu::instancenorm_forward);
  m.impl("instancenorm_backward", &my_ops::cpu::instancenorm_backward);
}
