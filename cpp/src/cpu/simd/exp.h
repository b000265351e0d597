// e^x of vectors, to about one unit in the last place: x = n*ln2 + r with |r| <= ln2/2, e^x = 2^n + 2^n*(e^r - 1).
#pragma once

#include <type_traits>

#include "cpu/simd/vec.h"

namespace my_ops::cpu {
namespace {

/// What depends on the type. `shifter` + n, for a small integer n, has n + bias in its low bits, from where a shift
/// brings it into the exponent. ln2 = ln2_high + ln2_low, the first with so few bits that its multiples are exact. The
/// series of e^r - 1 ends where its next term, r^(terms+1) / (terms+1)!, is below a tenth of a rounding.
template <class A>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  using Integer = uint32_t;
  static constexpr int terms = 7;
  static constexpr int mantissa_bits = 23;
  static constexpr float largest = 88.0f;  // 2^n stays a normal number
  static constexpr float smallest = -87.0f;
  static constexpr float shifter = 0x1.8p23f + 127;
  static constexpr float log2e = 0x1.715476p0f;
  static constexpr float ln2_high = 0x1.63p-1f;
  static constexpr float ln2_low = -0x1.bd0106p-13f;
};
template <>
struct ExpConstants<double> {
  using Integer = uint64_t;
  static constexpr int terms = 13;
  static constexpr int mantissa_bits = 52;
  static constexpr double largest = 709;
  static constexpr double smallest = -708;
  static constexpr double shifter = 0x1.8p52 + 1023;
  static constexpr double log2e = 0x1.71547652b82fep0;
  static constexpr double ln2_high = 0x1.62e42feep-1;
  static constexpr double ln2_low = 0x1.a39ef35793c76p-33;
};

/// 2^n and 2^n * (e^r - 1) for x within the bounds; beyond, those of the bound. NaN gives NaN.
template <class A>
struct ExpParts {
  Vec<A> power;
  Vec<A> rest;
};

template <class A>
MY_OPS_INLINE ExpParts<A> exp_parts(Vec<A> x) {
  using K = ExpConstants<A>;
  const Vec<A> largest = K::largest - Vec<A>{};
  const Vec<A> smallest = K::smallest - Vec<A>{};
  x = x > largest ? largest : x;
  x = x < smallest ? smallest : x;
  const Vec<A> shifted = x * K::log2e + K::shifter;
  const Vec<A> n = shifted - K::shifter;
  const Vec<A> r = (x - n * K::ln2_high) - n * K::ln2_low;
  Vec<A> series = Vec<A>{} + A(1);  // (e^r - 1) / r = 1 + r/2 * (1 + r/3 * (1 + ...))
  for (int k = K::terms; k > 1; --k) series = series * (r * (A(1) / static_cast<A>(k))) + A(1);
  const auto power = bit_cast<Vec<A>>(bit_cast<Vec<typename K::Integer>>(shifted) << K::mantissa_bits);
  return {power, power * (r * series)};
}

/// The lane type of a vector.
template <class V>
using Lane = std::remove_cvref_t<decltype(V{}[0])>;

/// What math/epilogue.h needs of vectors.
struct VectorMath {
  template <class V>
  MY_OPS_INLINE static V exp(V x) {
    const auto parts = exp_parts<Lane<V>>(x);
    return parts.power + parts.rest;
  }
  /// Near 0, where 2^n is 1, no digits cancel.
  template <class V>
  MY_OPS_INLINE static V expm1(V x) {
    const auto parts = exp_parts<Lane<V>>(x);
    return (parts.power - Lane<V>(1)) + parts.rest;
  }
};

}  // namespace
}  // namespace my_ops::cpu
