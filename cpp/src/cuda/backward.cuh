// Backward: its reduction, its conclusion and its maps (operation.cuh).
#pragma once

#include "cuda/operation.cuh"
#include "cuda/reduce.cuh"
#include "math/normalization.h"

namespace my_ops::cuda {

/// sum_dy and sum_dy_xhat, xhat = (x - mean) * invstd term by term.
template <class T>
struct GradientReduction {
  using A = Accumulator<T>;
  static constexpr int kInputs = 2;

  struct Seed {
    A mean;
    A invstd;
  };

  Vector mean;
  Vector invstd;

  __device__ Seed seed(const Inputs<T>&, const Tiling&, const Tile&, int64_t channel) const {
    return {read(mean, channel, A(0)), read(invstd, channel, A(0))};
  }
  template <class Add>
  __device__ static void terms(const Seed& seed, A x, A dy, Add add) {
    add(dy, dy * ((x - seed.mean) * seed.invstd));
  }
  __device__ static Partial partial(const Inputs<T>&, const Tiling&, const Tile&, int64_t, const Seed&, double first,
                                    double second, const Group&) {
    return {first, second, 0};
  }
};

/// The sums themselves, where wanted: grad_beta and grad_gamma.
struct GradientConclusion {
  Vector sum_dy;
  Vector sum_dy_xhat;

  __device__ static Partial merge(const Partial& a, const Partial& b) {
    return {a.first + b.first, a.second + b.second, 0};
  }
  __device__ Summary conclude(int64_t c, const Partial& total, bool publish) const {
    if (publish) {
      write(sum_dy, c, total.first);
      write(sum_dy_xhat, c, total.second);
    }
    return {total.first, total.second};
  }
};

/// Training: dx = dy * dy_scale + (x - mean) * x_scale + shift.
template <class T>
struct BackwardMap {
  using A = Accumulator<T>;
  static constexpr int kInputs = 2;

  struct Coefficients {
    A mean;
    math::BackwardAffine<A> affine;
  };

  Vector gamma;
  Vector mean;
  Vector invstd;
  int64_t count;                   // values per channel of the whole batch
  const int64_t* count_on_device;  // instead of `count`, where given

  __device__ Coefficients coefficients(int64_t c, const Summary& sums) const {
    const int64_t values = count_on_device != nullptr ? *count_on_device : count;
    return {read(mean, c, A(0)),
            math::backward_affine<A>(read(gamma, c, A(1)), read(invstd, c, A(0)), sums.first, sums.second, values)};
  }
  __device__ static A map(const Coefficients& k, A x, A dy) {
    return dy * k.affine.dy_scale + ((x - k.mean) * k.affine.x_scale + k.affine.shift);
  }
};

/// Eval: dx = dy * gamma * invstd. The only input is dy.
template <class T>
struct BackwardEvalMap {
  using A = Accumulator<T>;
  using Coefficients = A;
  static constexpr int kInputs = 1;

  Vector gamma;
  Vector invstd;

  __device__ Coefficients coefficients(int64_t c, const Summary&) const {
    return read(gamma, c, A(1)) * read(invstd, c, A(0));
  }
  __device__ static A map(const Coefficients& scale, A dy, A) { return dy * scale; }
};

}  // namespace my_ops::cuda
