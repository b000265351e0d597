// Activations behind a batch normalization: y = forward(z), and backward(dy, z) = dy * act'(z). One formula each for a
// value and for a vector of values V; Math brings exp and expm1 of a V. NaN stays NaN.
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

/// A comparison instead of fmin and fmax, so that NaN stays NaN.
template <class V, class A>
MY_OPS_HOST_DEVICE V at_least(A bound, V v) {
  const V wide = bound - V{};
  return v < wide ? wide : v;
}
template <class V, class A>
MY_OPS_HOST_DEVICE V at_most(A bound, V v) {
  const V wide = bound - V{};
  return v > wide ? wide : v;
}

/// relu: z where z > 0, else 0. Not leaky_relu with slope 0, which makes NaN of infinity.
template <class A>
struct Relu {
  template <class V>
  MY_OPS_HOST_DEVICE V forward(V z) const {
    return at_least(A(0), z);
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
};

/// relu6: z between 0 and 6, and there is its derivative 1.
template <class A>
struct Clamp {
  template <class V>
  MY_OPS_HOST_DEVICE V forward(V z) const {
    return at_most(A(6), at_least(A(0), z));
  }
  /// The distance to the nearer bound; exact near both.
  template <class V>
  MY_OPS_HOST_DEVICE V inside(V z) const {
    const V below = A(6) - z;
    return below < z ? below : z;
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
    return z > V{} ? z : Math::expm1(at_most(A(0), z)) * alpha;
  }
  template <class V>
  MY_OPS_HOST_DEVICE V backward(V dy, V z) const {
    return z > V{} ? dy : dy * (Math::exp(at_most(A(0), z)) * alpha);
  }
};

/// Beyond, e^-v and with it the gate are 0 or 1 up to the smallest normal number.
template <class A>
inline constexpr A kGateLimit = A(87);
template <>
inline constexpr double kGateLimit<double> = 708;

/// z * sigmoid(v) with v = linear * z + cubic * z^3: silu is linear = 1, cubic = 0. As
/// (1 + tanh(u)) / 2 = sigmoid(2 * u), gelu with tanh(sqrt(2 / pi) * (z + 0.044715 * z^3)) is a gate too.
/// With e = e^-v and s = sigmoid(v) = 1 / (1 + e), the derivative is s + z * s' = s * (1 + z * v' * e * s).
template <class A, class Math>
struct Gate {
  A linear;
  A cubic;

  MY_OPS_HOST_DEVICE static Gate silu() { return {A(1), A(0)}; }
  MY_OPS_HOST_DEVICE static Gate gelu_tanh() {
    constexpr double kTwiceRootOfTwoOverPi = 1.5957691216057307;
    return {static_cast<A>(kTwiceRootOfTwoOverPi), static_cast<A>(0.044715 * kTwiceRootOfTwoOverPi)};
  }

  template <class V>
  MY_OPS_HOST_DEVICE V forward(V z) const {
    const V bounded = clamped(z);
    return (z > V{} ? z : bounded) / (e_of(bounded) + A(1));
  }
  template <class V>
  MY_OPS_HOST_DEVICE V backward(V dy, V z) const {
    const V bounded = clamped(z);
    const V e = e_of(bounded);
    const V s = A(1) / (e + A(1));
    return dy * (s * (bounded * (bounded * bounded * (3 * cubic) + linear) * (e * s) + A(1)));
  }

 private:
  template <class V>
  MY_OPS_HOST_DEVICE static V clamped(V v) {
    return at_most(kGateLimit<A>, at_least(-kGateLimit<A>, v));
  }
  template <class V>
  MY_OPS_HOST_DEVICE V e_of(V z) const {
    return Math::exp(-clamped(z * (z * z * cubic + linear)));
  }
};

}  // namespace my_ops::math
