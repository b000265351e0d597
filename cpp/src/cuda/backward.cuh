// Backward: its reduction, its conclusion and its maps (operation.cuh).
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/operation.cuh"
#include "cuda/reduce.cuh"
#include "math/normalization.h"

namespace my_ops::cuda {

/// sum_dz and sum_dz_xhat, dz = dy but for the epilogue, xhat = (x - mean) * invstd term by term.
template <class T, class Epilogue>
struct GradientReduction {
  using A = Accumulator<T>;
  static constexpr int kInputs = 2;

  struct Seed {
    A mean;
    A invstd;
    [[no_unique_address]] typename Epilogue::Z z;
  };

  Vector mean;
  Vector invstd;
  Epilogue epilogue;

  __device__ Seed seed(const Inputs<T>&, const Tiling&, const Tile&, int64_t channel) const {
    const A scale = read(invstd, channel, A(0));
    return {read(mean, channel, A(0)), scale, epilogue.z_of(channel, scale)};
  }
  template <int E, int V, class More, class Add>
  __device__ __forceinline__ void terms(const Seed (&seed)[E], Packed<T, V> (&in)[2], const More& more, int64_t element,
                                        Add add) const {
    const auto d = [&](int i) { return value<A>(in[0], i) - seed[i * E / V].mean; };
    A dz[V];
    unpack(in[1], dz);
    epilogue.gradient(dz, more, [&](int i) { return seed[i * E / V].z(d(i)); });
    epilogue.keep(dz, [&](int i) { return seed[i * E / V].z; }, element);
    if (epilogue.replaces()) in[1] = packed<T>(dz);
#pragma unroll
    for (int i = 0; i < V; ++i) add(i, dz[i], dz[i] * (d(i) * seed[i * E / V].invstd));
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

/// Training: dx = (dz + (x - mean) * x_scale) * dy_scale + shift.
template <class T, class Epilogue>
struct BackwardMap {
  using A = Accumulator<T>;
  static constexpr int kInputs = 2;

  struct Coefficients {
    A mean;
    math::BackwardAffine<A> affine;
    [[no_unique_address]] typename Epilogue::Z z;
  };

  Vector gamma;
  Vector mean;
  Vector invstd;
  int64_t count;                   // values per channel of the whole batch
  const int64_t* count_on_device;  // instead of `count`, where given
  Epilogue epilogue;

  __device__ Coefficients coefficients(int64_t c, const Summary& sums) const {
    const int64_t values = count_on_device != nullptr ? *count_on_device : count;
    const A scale = read(invstd, c, A(0));
    return {read(mean, c, A(0)), math::backward_affine<A>(read(gamma, c, A(1)), scale, sums.first, sums.second, values),
            epilogue.z_of(c, scale)};
  }
  template <int E, int V, class More>
  __device__ __forceinline__ Packed<T, V> map(const Coefficients (&k)[E], const Packed<T, V> (&in)[2], const More& more,
                                              int64_t element) const {
    const auto d = [&](int i) { return value<A>(in[0], i) - k[i * E / V].mean; };
    A dz[V];
    unpack(in[1], dz);
    epilogue.gradient(dz, more, [&](int i) { return k[i * E / V].z(d(i)); });
    epilogue.keep(dz, [&](int i) { return k[i * E / V].z; }, element);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const auto& [dy_scale, x_scale, shift] = k[i * E / V].affine;
      dz[i] = (dz[i] + d(i) * x_scale) * dy_scale + shift;
    }
    return packed<T>(dz);
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
  Plain<T> epilogue;

  __device__ Coefficients coefficients(int64_t c, const Summary&) const {
    return read(gamma, c, A(1)) * read(invstd, c, A(0));
  }
  template <int E, int V, class More>
  __device__ __forceinline__ static Packed<T, V> map(const Coefficients (&scale)[E], const Packed<T, V> (&in)[1],
                                                     const More&, int64_t) {
    A dx[V];
    unpack(in[0], dx);
#pragma unroll
    for (int i = 0; i < V; ++i) dx[i] *= scale[i * E / V];
    return packed<T>(dx);
  }
};

}  // namespace my_ops::cuda
