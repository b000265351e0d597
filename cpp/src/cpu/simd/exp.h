// e^x of vectors, to about one unit in the last place, for |x| <= math::kExpLimit: x = n*ln2 + r with |r| <= ln2/2,
// e^x = 2^n + 2^n*(e^r - 1).
#pragma once

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
  static constexpr double shifter = 0x1.8p52 + 1023;
  static constexpr double log2e = 0x1.71547652b82fep0;
  static constexpr double ln2_high = 0x1.62e42feep-1;
  static constexpr double ln2_low = 0x1.a39ef35793c76p-33;
};

template <class A>
constexpr A per_factorial(int k) {
  double product = 1;
  for (int i = 2; i <= k; ++i) product *= i;
  return static_cast<A>(1 / product);
}

/// 2^n and 2^n * (e^r - 1). NaN gives NaN.
template <class A>
struct ExpParts {
  Vec<A> power;
  Vec<A> rest;
};

template <class A>
MY_OPS_INLINE ExpParts<A> exp_parts(Vec<A> x) {
  using K = ExpConstants<A>;
  const Vec<A> shifted = x * K::log2e + K::shifter;
  const Vec<A> n = shifted - K::shifter;
  const Vec<A> r = (x - n * K::ln2_high) - n * K::ln2_low;
  Vec<A> series = Vec<A>{} + per_factorial<A>(K::terms);  // (e^r - 1) / r = 1 + r/2! + r^2/3! + ...
  for (int k = K::terms - 1; k > 0; --k) series = series * r + per_factorial<A>(k);
  const auto power = bit_cast<Vec<A>>(bit_cast<Vec<typename K::Integer>>(shifted) << K::mantissa_bits);
  return {power, power * (r * series)};
}

}  // namespace
}  // namespace my_ops::cpu
