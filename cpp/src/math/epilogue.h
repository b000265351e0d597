// Activations behind a batch normalization: y = forward(z), backward(dy, z) = dy * act'(z), and of some inverse(y) = z
// and backward_from_output(dy, y). One formula each for a value and for a vector V of them; NaN stays NaN. Math brings,
// of a V, exp and expm1 (of -kExpLimit..kExpLimit), log1p (of -1..0), and lesser(a, b) and greater(a, b), which are b
// if one is NaN.
#pragma once

#include "math/normalization.h"

namespace my_ops::math {

/// Plain batch normalization.
struct Identity {
  template <class A>
  MY_OPS_HOST_DEVICE A forward(A y) const {
    return y;
  }
};

template <class Math, class V, class A>
MY_OPS_HOST_DEVICE V at_least(A bound, V v) {
  return Math::greater(bound - V{}, v);
}
template <class Math, class V, class A>
MY_OPS_HOST_DEVICE V at_most(A bound, V v) {
  return Math::lesser(bound - V{}, v);
}

/// Neither e^x nor e^-x of this leaves the normal numbers, and beyond e^-x is nothing beside 1.
template <class A>
inline constexpr A kExpLimit = A(87);
template <>
inline constexpr double kExpLimit<double> = 708;

/// What the exponential of a z <= 0 is taken of.
template <class Math, class A, class V>
MY_OPS_HOST_DEVICE V exponent(V z) {
  return at_least<Math>(-kExpLimit<A>, at_most<Math>(A(0), z));
}

/// relu: z where z > 0, else 0. Not leaky_relu with slope 0, which makes NaN of infinity.
template <class A, class Math>
struct Relu {
  template <class V>
  MY_OPS_HOST_DEVICE V forward(V z) const {
    return at_least<Math>(A(0), z);
  }
  /// Positive where the derivative is 1; elsewhere the gradient is outside(dy).
  template <class V>
  MY_OPS_HOST_DEVICE V inside(V z) const {
    return z;
  }
  template <class V>
  MY_OPS_HOST_DEVICE V outside(V) const {
    return V{};
  }
  template <class V>
  MY_OPS_HOST_DEVICE V backward(V dy, V z) const {
    return z > V{} ? dy : V{};
  }
};

/// leaky_relu: z where z > 0, else slope * z. With slope 1 it is the identity.
template <class A>
struct Select {
  A slope;

  template <class V>
  MY_OPS_HOST_DEVICE V forward(V z) const {
    return z > V{} ? z : z * slope;
  }
  template <class V>
  MY_OPS_HOST_DEVICE V inside(V z) const {
    return z;
  }
  template <class V>
  MY_OPS_HOST_DEVICE V outside(V dy) const {
    return dy * slope;
  }
  template <class V>
  MY_OPS_HOST_DEVICE V backward(V dy, V z) const {
    return z > V{} ? dy : outside(dy);
  }
  /// For slope > 0.
  template <class V>
  MY_OPS_HOST_DEVICE V inverse(V y) const {
    return y > V{} ? y : y * (A(1) / slope);
  }
  template <class V>
  MY_OPS_HOST_DEVICE V backward_from_output(V dy, V y) const {
    return backward(dy, y);
  }
};

/// relu6: z between 0 and 6, and there is its derivative 1.
template <class A, class Math>
struct Clamp {
  template <class V>
  MY_OPS_HOST_DEVICE V forward(V z) const {
    return at_most<Math>(A(6), at_least<Math>(A(0), z));
  }
  /// The distance to the nearer bound; exact near both.
  template <class V>
  MY_OPS_HOST_DEVICE V inside(V z) const {
    return Math::lesser(A(6) - z, z);
  }
  template <class V>
  MY_OPS_HOST_DEVICE V outside(V) const {
    return V{};
  }
  template <class V>
  MY_OPS_HOST_DEVICE V backward(V dy, V z) const {
    return inside(z) > V{} ? dy : V{};
  }
};

/// elu: z where z > 0, else alpha * (e^z - 1).
template <class A, class Math>
struct Elu {
  A alpha;

  template <class V>
  MY_OPS_HOST_DEVICE V forward(V z) const {
    return z > V{} ? z : Math::expm1(exponent<Math, A>(z)) * alpha;
  }
  template <class V>
  MY_OPS_HOST_DEVICE V backward(V dy, V z) const {
    return z > V{} ? dy : dy * (Math::exp(exponent<Math, A>(z)) * alpha);
  }
  /// For alpha > 0. Of -alpha, which tells nothing but that z is far below 0, log1p's least number.
  template <class V>
  MY_OPS_HOST_DEVICE V inverse(V y) const {
    return y > V{} ? y : Math::log1p(at_least<Math>(A(-1), at_most<Math>(A(0), y) / alpha));
  }
  template <class V>
  MY_OPS_HOST_DEVICE V backward_from_output(V dy, V y) const {
    return y > V{} ? dy : dy * (y + alpha);
  }
};

template <class Math, class A, class V>
MY_OPS_HOST_DEVICE V within_exp_limit(V v) {
  return at_most<Math>(kExpLimit<A>, at_least<Math>(-kExpLimit<A>, v));
}

/// z * sigmoid(v) with v a function of z. With e = e^-v and s = sigmoid(v) = 1 / (1 + e), the derivative is
/// s + z * s' = s * (1 + z * v' * e * s).
template <class A, class Math, class Exponent>
struct Gate {
  template <class V>
  MY_OPS_HOST_DEVICE V forward(V z) const {
    const V bounded = at_least<Math>(-kExpLimit<A>, z);
    return bounded / (e_of(at_most<Math>(kExpLimit<A>, bounded)) + A(1));
  }
  template <class V>
  MY_OPS_HOST_DEVICE V backward(V dy, V z) const {
    const V bounded = within_exp_limit<Math, A>(z);
    const V e = e_of(bounded);
    const V s = A(1) / (e + A(1));
    return dy * (s * (Exponent::slope(bounded) * (e * s) + A(1)));
  }

 private:
  template <class V>
  MY_OPS_HOST_DEVICE static V e_of(V z) {
    return Math::exp(-Exponent::of(z));
  }
};

/// v = z.
struct SiluExponent {
  template <class V>
  MY_OPS_HOST_DEVICE static V of(V z) {
    return z;
  }
  /// z * v'.
  template <class V>
  MY_OPS_HOST_DEVICE static V slope(V z) {
    return z;
  }
};

/// v = 2 * sqrt(2 / pi) * (z + 0.044715 * z^3): as (1 + tanh(u)) / 2 = sigmoid(2 * u), gelu with tanh is a gate too.
template <class A, class Math>
struct GeluExponent {
  static constexpr A kLinear = static_cast<A>(1.5957691216057307);
  static constexpr A kCubic = static_cast<A>(0.044715 * 1.5957691216057307);

  template <class V>
  MY_OPS_HOST_DEVICE static V of(V z) {
    return within_exp_limit<Math, A>(z * (z * z * kCubic + kLinear));
  }
  /// z * v'.
  template <class V>
  MY_OPS_HOST_DEVICE static V slope(V z) {
    return z * (z * z * (3 * kCubic) + kLinear);
  }
};

template <class A, class Math>
using Silu = Gate<A, Math, SiluExponent>;
template <class A, class Math>
using GeluTanh = Gate<A, Math, GeluExponent<A, Math>>;

}  // namespace my_ops::math
