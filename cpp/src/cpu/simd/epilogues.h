// What the passes do to z = (x - center) * scale + shift before they store it, and to dy before they use it. Each is a
// template parameter of the loops:
//
//   output(z, i, lanes)          what is stored for z, the pack of element i
//   gradient(dy, z, i, lanes)    dz; z() computes z, for those that need it
//   keep(dz, i, lanes)           stores dz, where it is wanted
//   kFromZ                       whether gradient() calls z()
//   kLight                       whether it is a few instructions, so that loops are unrolled and walk several
//                                stretches together; else that would be much code and no faster
#pragma once

#include "cpu/simd/exp.h"
#include "cpu/simd/mask.h"
#include "cpu/simd/packs.h"
#include "cpu/simd/rows.h"
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

/// Batch normalization alone.
template <class T>
struct Plain {
  static constexpr bool kFromZ = false;
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
  static constexpr bool kFromZ = true;
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
  static constexpr bool kFromZ = true;
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
  static constexpr bool kFromZ = false;
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
    use(math::Clamp<A>{});
  } else if (const A slope = slope_of(k); slope == A(0)) {
    use(math::Relu<A>{});
  } else {
    use(math::Select<A>{slope});
  }
}

// z from d = x - mean, for the epilogues whose gradient needs it: z = d * scale + shift.

/// For stretches side by side.
template <class T, class E, int kCount, bool kNeeded = E::kFromZ>
struct ZOfStretches {
  using A = Accumulator<T>;

  MY_OPS_INLINE ZOfStretches(const AffineOfZ<A>&, const A*, int64_t, SideBySide<kCount>) {}
  MY_OPS_INLINE Pack<T> operator()(Pack<T> d, int) const { return d; }
  MY_OPS_INLINE Pack<T> of_x(Pack<T> x, int) const { return x; }
};
template <class T, class E, int kCount>
struct ZOfStretches<T, E, kCount, true> {
  using A = Accumulator<T>;
  Broadcast<T, kCount> mean;
  Broadcast<T, kCount> scale;
  Broadcast<T, kCount> shift;

  MY_OPS_INLINE ZOfStretches(const AffineOfZ<A>& k, const A* mean, int64_t c, SideBySide<kCount> side)
      : mean(mean, c, side), scale(k.scale, c, side), shift(k.shift, c, side) {}
  MY_OPS_INLINE Pack<T> operator()(Pack<T> d, int r) const { return d * scale[r] + shift[r]; }
  MY_OPS_INLINE Pack<T> of_x(Pack<T> x, int r) const { return (*this)(x - mean[r], r); }
};

/// For a pack of columns.
template <class T>
struct ZOfPack {
  Pack<T> scale;
  Pack<T> shift;

  MY_OPS_INLINE Pack<T> operator()(Pack<T> d) const { return d * scale + shift; }
};

/// For the columns of rows. at(j) before the loop over rows: a store in it might change what is loaded.
template <class T, class E, bool kNeeded = E::kFromZ>
struct ZOfColumns {
  MY_OPS_INLINE ZOfColumns(const AffineOfZ<Accumulator<T>>&, const Rows&, const Region&) {}
  MY_OPS_INLINE auto at(int64_t) const {
    return [](Pack<T> d) { return d; };
  }
};
template <class T, class E>
struct ZOfColumns<T, E, true> {
  Columns<T> scales;
  Columns<T> shifts;

  MY_OPS_INLINE ZOfColumns(const AffineOfZ<Accumulator<T>>& k, const Rows& rows, const Region& region) {
    scales.expand(rows, k.scale + region.c0);
    shifts.expand(rows, k.shift + region.c0);
  }
  MY_OPS_INLINE ZOfPack<T> at(int64_t j) const { return {scales.at(j), shifts.at(j)}; }
};

/// use(epilogue) for an activation of z alone; elu, silu and gelu_tanh, which take longer, may join a residual first.
template <class T, class Use>
MY_OPS_INLINE void with_activation(const Epilogue<T>& k, Use use) {
  using A = Accumulator<T>;
  using Gate = math::Gate<A, VectorMath>;
  const auto smooth = [&](auto act) { use(Activated<T, decltype(act)>{act, k.residual, k.dz}); };
  switch (k.activation) {
    case plan::Activation::elu:
      return smooth(math::Elu<A, VectorMath>{k.slope});
    case plan::Activation::silu:
    case plan::Activation::gelu_tanh:
      return smooth(k.activation == plan::Activation::silu ? Gate::silu() : Gate::gelu_tanh());
    default:
      return with_linear(k, [&](auto act) { use(Selected<T, decltype(act)>{act, k.dz}); });
  }
}

/// The same, and what joins a residual or reads a mask.
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
