// The formulas of batch normalization, shared by host and device. No loops, no tensors.
//
//   invstd = 1 / sqrt(var + eps)      xhat = (x - mean) * invstd      y = gamma * xhat + beta
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define MY_OPS_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Never a function of its own: the SIMD sources are compiled once per instruction set, and may not share code.
#define MY_OPS_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace my_ops::math {

/// Statistics of a part of a channel: mean, M2 = sum of (x - mean)^2, and the number of values.
template <class A>
struct Moments {
  A mean;
  A m2;
  int64_t count;
};

/// Chan, Golub, LeVeque (1979): the moments of two disjoint parts joined. Either part may be empty.
template <class A>
MY_OPS_HOST_DEVICE Moments<A> merge(const Moments<A>& a, const Moments<A>& b) {
  if (b.count == 0) return a;
  if (a.count == 0) return b;
  const int64_t count = a.count + b.count;
  const A delta = b.mean - a.mean;
  const A share = static_cast<A>(b.count) / static_cast<A>(count);
  return {a.mean + delta * share, a.m2 + b.m2 + delta * delta * share * static_cast<A>(a.count), count};
}

/// Biased variance, M2 / M; 0 for an empty channel.
template <class A>
MY_OPS_HOST_DEVICE A variance(const Moments<A>& moments) {
  return moments.count == 0 ? A(0) : moments.m2 / static_cast<A>(moments.count);
}

/// Unbiased variance, M2 / (M - 1), as torch.nn.BatchNorm2d keeps it. M = 1 gives NaN, as torch.var does.
template <class A>
MY_OPS_HOST_DEVICE A unbiased_variance(const Moments<A>& moments) {
  return moments.m2 / static_cast<A>(moments.count - 1);
}

template <class A>
MY_OPS_HOST_DEVICE A inverse_std(A var, A eps) {
  return A(1) / std::sqrt(var + eps);
}

/// running <- (1 - momentum) * running + momentum * batch
template <class A>
MY_OPS_HOST_DEVICE A update_running(A running, A batch, A momentum) {
  return (A(1) - momentum) * running + momentum * batch;
}

/// y = (x - center) * scale + shift.
///
/// The mean stays out of `shift`: x * scale + (beta - mean * scale) cancels when |mean| >> std. With a mean known more
/// precisely than the element type holds, center = round(mean) makes x - center exact for x near the mean, and the
/// rest, mean - center, is so small that it can join the shift.
template <class A>
struct Affine {
  A center;
  A scale;
  A shift;
};

template <class A>
MY_OPS_HOST_DEVICE Affine<A> forward_affine(double mean, double invstd, A gamma, A beta) {
  const A center = static_cast<A>(mean);
  const double scale = gamma * invstd;
  return {center, static_cast<A>(scale), static_cast<A>(beta - (mean - center) * scale)};
}

/// dx = (dy + (x - mean) * x_scale) * dy_scale + shift.
///
/// Training: dx = gamma * invstd * (dy - sum_dy / M - xhat * sum_dy_xhat / M). Eval: gamma * invstd * dy. Not summed as
/// three products, of which that of x would have invstd^2 in it: 0 in float32 where x spreads beyond 1e19.
template <class A>
struct BackwardAffine {
  A dy_scale;
  A x_scale;
  A shift;
};

template <class A>
MY_OPS_HOST_DEVICE BackwardAffine<A> backward_affine(A gamma, A invstd, double sum_dy, double sum_dy_xhat,
                                                     int64_t count) {
  const double scale = static_cast<double>(gamma) * invstd;
  const double per_value = 1 / static_cast<double>(count);
  return {static_cast<A>(scale), static_cast<A>(-per_value * invstd * sum_dy_xhat),
          static_cast<A>(-per_value * scale * sum_dy)};
}

}  // namespace my_ops::math
