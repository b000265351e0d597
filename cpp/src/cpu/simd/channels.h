// The work per channel between the passes over memory. For thousands of channels with few values each it is most of a
// call: so the loops are plain, over arrays, for the compiler to vectorise.
#pragma once

#include "cpu/simd/vec.h"
#include "math/normalization.h"

namespace my_ops::cpu {
namespace {

inline void merge_moments(double* mean, double* m2, int64_t count, const double* more_mean, const double* more_m2,
                          int64_t more, int64_t n) {
#pragma GCC ivdep
  for (int64_t c = 0; c < n; ++c) {
    const auto joined = math::merge<double>({mean[c], m2[c], count}, {more_mean[c], more_m2[c], more});
    mean[c] = joined.mean;
    m2[c] = joined.m2;
  }
}

inline void add(double* sums, const double* more, int64_t n) {
#pragma GCC ivdep
  for (int64_t c = 0; c < n; ++c) sums[c] += more[c];
}

template <class A>
MY_OPS_INLINE void set_forward(const ForwardChannels<A>& k, int64_t c, double mean, double var) {
  const double r = math::inverse_std(var, k.eps);
  const auto affine = math::forward_affine<A>(mean, r, k.gamma[c], k.beta[c]);
  k.mean[c] = static_cast<A>(mean);
  k.invstd[c] = static_cast<A>(r);
  k.center[c] = affine.center;
  k.scale[c] = affine.scale;
  k.shift[c] = affine.shift;
}

template <class A>
void finish_forward(const ForwardChannels<A>& k_, int64_t c0, int64_t c1, const double* mean, const double* m2,
                    int64_t count) {
  const ForwardChannels<A> k = k_;
  const double per_value = 1.0 / static_cast<double>(count);
#pragma GCC ivdep
  for (int64_t c = c0; c < c1; ++c) set_forward(k, c, mean[c], m2[c] * per_value);
  if (k.running_mean) {
#pragma GCC ivdep
    for (int64_t c = c0; c < c1; ++c) {
      k.running_mean[c] = static_cast<A>(math::update_running<double>(k.running_mean[c], mean[c], k.momentum));
    }
  }
  if (k.running_var) {
    const double unbiased = 1.0 / static_cast<double>(count - 1);
#pragma GCC ivdep
    for (int64_t c = c0; c < c1; ++c) {
      k.running_var[c] = static_cast<A>(math::update_running<double>(k.running_var[c], m2[c] * unbiased, k.momentum));
    }
  }
}

template <class A>
void finish_given(const ForwardChannels<A>& k_, int64_t c0, int64_t c1, const A* mean, const A* var) {
  const ForwardChannels<A> k = k_;
#pragma GCC ivdep
  for (int64_t c = c0; c < c1; ++c) set_forward(k, c, mean[c], var[c]);
}

template <class A>
void finish_backward(const BackwardChannels<A>& k_, int64_t c0, int64_t c1, const double* sum_dy,
                     const double* sum_dy_xhat, int64_t count) {
  const BackwardChannels<A> k = k_;
#pragma GCC ivdep
  for (int64_t c = c0; c < c1; ++c) {
    const auto affine = math::backward_affine<A>(k.gamma[c], k.invstd[c], sum_dy[c], sum_dy_xhat[c], count);
    k.dy_scale[c] = affine.dy_scale;
    k.x_scale[c] = affine.x_scale;
    k.shift[c] = affine.shift;
  }
}

}  // namespace
}  // namespace my_ops::cpu
