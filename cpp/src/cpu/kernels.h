// The phases of batch normalization on a region of memory, as the drivers see them. Their code is in simd/, compiled
// once per instruction set; this header is all that both sides share, and it names no torch type.
#pragma once

#include <cstdint>

#include "plan/activation.h"
#include "plan/shape.h"

namespace my_ops::cpu {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

/// float64 accumulates in itself, everything else in float32.
template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

/// y = (x - center) * scale + shift; [C] each.
template <class A>
struct ForwardCoefficients {
  const A* center;
  const A* scale;
  const A* shift;
};

/// dx = (dy + (x - mean) * x_scale) * dy_scale + shift; [C] each. Without x_scale (eval mode) dy * dy_scale, and mean
/// is needed by an activation alone.
template <class A>
struct BackwardCoefficients {
  const A* mean;
  const A* dy_scale;
  const A* x_scale;
  const A* shift;
};

/// z = (x - mean) * scale + shift, as backward passes compute it again; [C] each.
template <class A>
struct AffineOfZ {
  const A* scale;
  const A* shift;
};

/// What follows the affine map: output = act(z + residual), and before a backward pass dz = dy * act'(z + residual).
/// Bits of a mask tell whether z + residual > 0, in memory order (element i: bit i % 8 of byte i / 8).
template <class T>
struct Epilogue {
  plan::Activation activation;
  Accumulator<T> slope;
  const T* residual = nullptr;       // laid out as x, or null
  uint8_t* written = nullptr;        // forward, out: the mask, which starts as zeros; or null
  const uint8_t* mask = nullptr;     // backward, for relu, leaky_relu and relu6: instead of z and the residual; or null
  AffineOfZ<Accumulator<T>> z = {};  // backward
  bool of_output = false;            // backward: what is given for x is act(z), for mean beta, for invstd 1 / gamma
  T* dz = nullptr;                   // backward_reduce, out; or null
};

/// The per-channel work of a forward pass; [C] each.
template <class A>
struct ForwardChannels {
  const A* gamma;
  const A* beta;
  A* mean;  // out: save_mean and save_invstd
  A* invstd;
  A* center;  // out: the coefficients of apply
  A* scale;
  A* shift;
  A* running_mean;  // in and out in training, or null
  A* running_var;
  double momentum;
  double eps;
};

/// The per-channel work of a backward pass; [C] each.
template <class A>
struct BackwardChannels {
  const A* gamma;
  const A* invstd;
  A* dy_scale;  // out: the coefficients of backward_apply
  A* x_scale;
  A* shift;
};

/// One function per phase. x, dy, y, dx: the whole tensor, all of one Shape; only the region is touched. Per-channel
/// arrays are indexed by channel, also when the region starts at a later one.
template <class T>
struct Kernels {
  using A = Accumulator<T>;
  using Shape = plan::Shape;
  using Region = plan::Region;

  /// mean[c] and m2[c] of the region's values. Reads x once; once more for a channel whose single pass was inaccurate.
  void (*stats)(const T* x, const Shape&, const Region&, double* mean, double* m2);
  /// From mean and M2 of `count` values each: everything in ForwardChannels, for the channels c0..c1-1.
  void (*finish_forward)(const ForwardChannels<A>&, int64_t c0, int64_t c1, const double* mean, const double* m2,
                         int64_t count);
  /// The same from given statistics; running ones are left alone.
  void (*finish_given)(const ForwardChannels<A>&, int64_t c0, int64_t c1, const A* mean, const A* var);
  /// `stream`: y is too large to stay in the cache, and is written past it.
  void (*apply)(const T* x, T* y, const Shape&, const Region&, const ForwardCoefficients<A>&, bool stream);

  /// sum_dy[c] = sum of dy; sum_dy_xhat[c] = sum of dy * ((x - mean) * invstd).
  void (*backward_reduce)(const T* dy, const T* x, const Shape&, const Region&, const A* mean, const A* invstd,
                          double* sum_dy, double* sum_dy_xhat);
  /// From the sums over `count` values to the coefficients, for the channels c0..c1-1.
  void (*finish_backward)(const BackwardChannels<A>&, int64_t c0, int64_t c1, const double* sum_dy,
                          const double* sum_dy_xhat, int64_t count);
  /// x is not read when there is no x_scale.
  void (*backward_apply)(const T* dy, const T* x, T* dx, const Shape&, const Region&, const BackwardCoefficients<A>&,
                         bool stream);

  // The same with an epilogue.
  void (*act_apply)(const T* x, T* y, const Shape&, const Region&, const ForwardCoefficients<A>&, const Epilogue<T>&,
                    bool stream);
  /// The sums of dz instead of dy; dz itself, where wanted.
  void (*act_backward_reduce)(const T* dy, const T* x, const Shape&, const Region&, const A* mean, const A* invstd,
                              const Epilogue<T>&, double* sum_dz, double* sum_dz_xhat);
  /// Of an activation of z alone: no residual, no mask. x and mean are read also when there is no x_scale.
  void (*act_backward_apply)(const T* dy, const T* x, T* dx, const Shape&, const Region&,
                             const BackwardCoefficients<A>&, const Epilogue<T>&, bool stream);
};

/// All kernels of an instruction set; first those that do not depend on the element type.
struct KernelTable {
  /// Joins the moments of `more` values to those of `count` values, for n channels.
  void (*merge_moments)(double* mean, double* m2, int64_t count, const double* more_mean, const double* more_m2,
                        int64_t more, int64_t n);
  /// sums[i] += more[i] for n channels.
  void (*add)(double* sums, const double* more, int64_t n);
  /// How much of the last-level cache a pass may fill before its result is written past it.
  double cache_share;

  Kernels<double> of_double;
  Kernels<float> of_float;
  Kernels<bfloat16> of_bfloat16;
  Kernels<float16> of_float16;
};

/// One per instruction set, each from its own kernels_*.cpp; for AVX-512 one more, tuned for Intel's processors.
const KernelTable& kernels_default();
const KernelTable& kernels_avx2();
const KernelTable& kernels_avx512();
const KernelTable& kernels_avx512_intel();

}  // namespace my_ops::cpu
