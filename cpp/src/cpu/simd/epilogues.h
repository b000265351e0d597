// What the passes do to z = (x - center) * scale + shift before they store it, and to dy before they use it. Each is a
// template parameter of the loops:
//
//   output(z, i, lanes)          what is stored for z, the pack of element i
//   gradient(dy, u, i, lanes)    dz; u() brings what kGradientOf says
//   keep(dz, i, lanes)           stores dz, where it is wanted
//   kGradientOf                  what gradient() depends on besides dy
//   kLight                       whether it is a few instructions, so that loops are unrolled and walk several
//                                stretches together; else that would be much code and no faster
//   input(y)                     if the gradient is of the output: what stands for x
#pragma once

#include "cpu/simd/mask.h"
#include "cpu/simd/packs.h"
#include "cpu/simd/rows.h"
#include "cpu/simd/vector_math.h"
#include "math/epilogue.h"

namespace my_ops::cpu {
namespace {

/// f of each vector of the packs.
template <class V, class F, class... Packs>
MY_OPS_INLINE V each_vector(F f, V first, Packs... packs) {
  if constexpr (std::is_same_v<V, Pair>) {
    return {f(first.first, packs.first...), f(first.second, packs.second...)};
  } else {
    return f(first, packs...);
  }
}

enum class GradientOf {
  dy,      // alone
  z,       // computed from x
  output,  // which is what is read
};

/// Batch normalization alone.
template <class T>
struct Plain {
  static constexpr GradientOf kGradientOf = GradientOf::dy;
  static constexpr bool kLight = true;

  template <class Lanes>
  MY_OPS_INLINE Pack<T> output(Pack<T> z, int64_t, Lanes) const {
    return z;
  }
  template <class Z, class Lanes>
  MY_OPS_INLINE Pack<T> gradient(Pack<T> dy, Z, int64_t, Lanes) const {
    return dy;
  }
  template <class Lanes>
  MY_OPS_INLINE void keep(Pack<T>, int64_t, Lanes) const {}
};

/// act(z + residual).
template <class T, class Act>
struct Activated {
  static constexpr GradientOf kGradientOf = GradientOf::z;
  static constexpr bool kLight = false;

  Act act;
  const T* residual;  // or null
  T* dz;

  template <class Lanes>
  MY_OPS_INLINE Pack<T> output(Pack<T> z, int64_t i, Lanes lanes) const {
    return each_vector([&](auto v) { return act.forward(v); }, joined(z, i, lanes));
  }
  template <class Z, class Lanes>
  MY_OPS_INLINE Pack<T> gradient(Pack<T> dy, Z z, int64_t i, Lanes lanes) const {
    return each_vector([&](auto g, auto v) { return act.backward(g, v); }, dy, joined(z(), i, lanes));
  }
  template <class Lanes>
  MY_OPS_INLINE void keep(Pack<T> g, int64_t i, Lanes lanes) const {
    if (dz) store(dz + i, lanes, g);
  }

 private:
  template <class Lanes>
  MY_OPS_INLINE Pack<T> joined(Pack<T> z, int64_t i, Lanes lanes) const {
    return residual ? z + load_ahead(residual + i, lanes, Pack<T>{}) : z;
  }
};

/// act(z), read back from itself: a backward pass reads y = act(z) instead of x. With inverse(y) = z in the place of x,
/// beta in that of mean and 1 / gamma in that of invstd, xhat is what it was.
template <class T, class Act, bool light>
struct Inverted {
  static constexpr GradientOf kGradientOf = GradientOf::output;
  static constexpr bool kLight = light;

  Act act;

  MY_OPS_INLINE Pack<T> input(Pack<T> y) const {
    return each_vector([&](auto v) { return act.inverse(v); }, y);
  }
  template <class Y, class Lanes>
  MY_OPS_INLINE Pack<T> gradient(Pack<T> dy, Y y, int64_t, Lanes) const {
    return each_vector([&](auto g, auto v) { return act.backward_from_output(g, v); }, dy, y());
  }
  template <class Lanes>
  MY_OPS_INLINE void keep(Pack<T>, int64_t, Lanes) const {}
};

/// How a loop with epilogue E is unrolled, and how many stretches it walks together.
template <class T, class E>
constexpr int kUnrolled = E::kLight ? kSlots<T> : 1;
template <class E>
constexpr int64_t kStretches = E::kLight ? plan::kSideBySide : 1;
template <class T, class Full, class E>
constexpr int64_t kStretchesOf = E::kLight ? kTogether<T, Full> : 1;

/// A piecewise linear act(z).
template <class T, class Act>
struct Selected {
  static constexpr GradientOf kGradientOf = GradientOf::z;
  static constexpr bool kLight = true;

  Act act;
  T* dz;

  template <class Lanes>
  MY_OPS_INLINE Pack<T> output(Pack<T> z, int64_t, Lanes) const {
    return each_vector([&](auto v) { return act.forward(v); }, z);
  }
  template <class Z, class Lanes>
  MY_OPS_INLINE Pack<T> gradient(Pack<T> dy, Z z, int64_t, Lanes) const {
    return each_vector([&](auto g, auto v) { return act.backward(g, v); }, dy, z());
  }
  template <class Lanes>
  MY_OPS_INLINE void keep(Pack<T> g, int64_t i, Lanes lanes) const {
    if (dz) store(dz + i, lanes, g);
  }
};

/// A piecewise linear act(z + residual). Its gradient needs a bit per value, neither z nor the residual.
template <class T, class Act>
struct Masked {
  static constexpr GradientOf kGradientOf = GradientOf::dy;
  static constexpr bool kLight = true;

  Act act;
  const T* residual;
  uint8_t* written;  // or null
  const uint8_t* mask;
  T* dz;

  template <class Lanes>
  MY_OPS_INLINE Pack<T> output(Pack<T> z, int64_t i, Lanes lanes) const {
    z += load_ahead(residual + i, lanes, Pack<T>{});
    if (written) {
      const Pack<T> inside = each_vector([&](auto v) { return act.inside(v); }, z);
      write_bits<T>(written, i, lanes, positive_values<T>(inside));
    }
    return each_vector([&](auto v) { return act.forward(v); }, z);
  }
  template <class Z, class Lanes>
  MY_OPS_INLINE Pack<T> gradient(Pack<T> dy, Z, int64_t i, Lanes lanes) const {
    using A = Accumulator<T>;
    const uint32_t bits = read_bits<T>(mask, i, lanes);
    if constexpr (std::is_same_v<Pack<T>, Pair>) {
      constexpr int step = kLaneStep<T>;
      return {choose<A, 0, step>(bits, dy.first, act.outside(dy.first)),
              choose<A, kSecondLane<T>, step>(bits, dy.second, act.outside(dy.second))};
    } else {
      return choose<A>(bits, dy, act.outside(dy));
    }
  }
  template <class Lanes>
  MY_OPS_INLINE void keep(Pack<T> g, int64_t i, Lanes lanes) const {
    if (dz) store(dz + i, lanes, g);
  }
};

/// The factor for z <= 0 of identity, relu and leaky_relu.
template <class T>
MY_OPS_INLINE Accumulator<T> slope_of(const Epilogue<T>& k) {
  if (k.activation == plan::Activation::identity) return 1;
  return k.activation == plan::Activation::relu ? Accumulator<T>(0) : k.slope;
}

/// use(act) for these and relu6.
template <class T, class Use>
MY_OPS_INLINE void with_linear(const Epilogue<T>& k, Use use) {
  using A = Accumulator<T>;
  if (k.activation == plan::Activation::relu6) {
    use(math::Clamp<A, VectorMath>{});
  } else if (const A slope = slope_of(k); slope == A(0)) {
    use(math::Relu<A, VectorMath>{});
  } else {
    use(math::Select<A>{slope});
  }
}

/// What stands for x, from what was read in its place.
template <class T, class E>
MY_OPS_INLINE Pack<T> input_of(const E& epilogue, Pack<T> v) {
  if constexpr (E::kGradientOf == GradientOf::output) {
    return epilogue.input(v);
  } else {
    return v;
  }
}

// What gradient() depends on, from v, which was read, and d = input_of(v) - mean: z = d * scale + shift, or v itself.

/// For stretches side by side.
template <class T, class E, int kCount, bool kIsZ = E::kGradientOf == GradientOf::z>
struct UOfStretches {
  using A = Accumulator<T>;

  MY_OPS_INLINE UOfStretches(const AffineOfZ<A>&, const A*, int64_t, SideBySide<kCount>) {}
  MY_OPS_INLINE Pack<T> operator()(Pack<T> v, Pack<T>, int) const { return v; }
  MY_OPS_INLINE Pack<T> operator()(Pack<T> v, int) const { return v; }
};
template <class T, class E, int kCount>
struct UOfStretches<T, E, kCount, true> {
  using A = Accumulator<T>;
  Broadcast<T, kCount> mean;
  Broadcast<T, kCount> scale;
  Broadcast<T, kCount> shift;

  MY_OPS_INLINE UOfStretches(const AffineOfZ<A>& k, const A* mean, int64_t c, SideBySide<kCount> side)
      : mean(mean, c, side), scale(k.scale, c, side), shift(k.shift, c, side) {}
  MY_OPS_INLINE Pack<T> operator()(Pack<T>, Pack<T> d, int r) const { return d * scale[r] + shift[r]; }
  MY_OPS_INLINE Pack<T> operator()(Pack<T> x, int r) const { return (*this)(x, x - mean[r], r); }
};

/// For a pack of columns.
template <class T>
struct ZOfPack {
  Pack<T> scale;
  Pack<T> shift;

  MY_OPS_INLINE Pack<T> operator()(Pack<T>, Pack<T> d) const { return d * scale + shift; }
};

/// For the columns of rows. at(j) before the loop over rows: a store in it might change what is loaded.
template <class T, class E, bool kIsZ = E::kGradientOf == GradientOf::z>
struct UOfColumns {
  MY_OPS_INLINE UOfColumns(const AffineOfZ<Accumulator<T>>&, const Rows&, const Region&) {}
  MY_OPS_INLINE auto at(int64_t) const {
    return [](Pack<T> v, Pack<T>) { return v; };
  }
};
template <class T, class E>
struct UOfColumns<T, E, true> {
  Columns<T> scales;
  Columns<T> shifts;

  MY_OPS_INLINE UOfColumns(const AffineOfZ<Accumulator<T>>& k, const Rows& rows, const Region& region) {
    scales.expand(rows, k.scale + region.c0);
    shifts.expand(rows, k.shift + region.c0);
  }
  MY_OPS_INLINE ZOfPack<T> at(int64_t j) const { return {scales.at(j), shifts.at(j)}; }
};

/// use(epilogue) for an activation of z alone; elu, silu and gelu_tanh, which take longer, may join a residual first.
template <class T, class Use>
MY_OPS_INLINE void with_activation(const Epilogue<T>& k, Use use) {
  using A = Accumulator<T>;
  const auto smooth = [&](auto act) { use(Activated<T, decltype(act)>{act, k.residual, k.dz}); };
  switch (k.activation) {
    case plan::Activation::elu:
      return smooth(math::Elu<A, VectorMath>{k.slope});
    case plan::Activation::silu:
      return smooth(math::Silu<A, VectorMath>{});
    case plan::Activation::gelu_tanh:
      return smooth(math::GeluTanh<A, VectorMath>{});
    default:
      return with_linear(k, [&](auto act) { use(Selected<T, decltype(act)>{act, k.dz}); });
  }
}

/// use(epilogue) for a backward pass over the output of an activation that has an inverse.
template <class T, class Use>
MY_OPS_INLINE void with_inverse(const Epilogue<T>& k, Use use) {
  using A = Accumulator<T>;
  if (k.activation == plan::Activation::elu) {
    use(Inverted<T, math::Elu<A, VectorMath>, false>{{k.slope}});
  } else {
    use(Inverted<T, math::Select<A>, true>{{slope_of(k)}});
  }
}

/// The same as with_activation, and what joins a residual or reads a mask.
template <class T, class Use>
MY_OPS_INLINE void with_epilogue(const Epilogue<T>& k, Use use) {
  if (k.activation > plan::Activation::relu6 || !(k.residual || k.mask)) {
    with_activation(k, use);
  } else {
    with_linear(k, [&](auto act) { use(Masked<T, decltype(act)>{act, k.residual, k.written, k.mask, k.dz}); });
  }
}

}  // namespace
}  // namespace my_ops::cpu
