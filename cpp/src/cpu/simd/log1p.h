// ln(1 + u) of vectors, to about one unit in the last place, for u >= -1: w = 1 + u = 2^k * m with m between sqrt(1/2)
// and sqrt(2), ln(w) = k*ln2 + ln(m).
#pragma once

#include "cpu/simd/exp.h"

namespace my_ops::cpu {
namespace {

/// What depends on the type, besides ExpConstants. The series of ln(m) ends where its next term, q^terms / (2*terms +
/// 1) with q <= 0.0295, is below a tenth of a rounding.
template <class A>
struct LogConstants;
template <>
struct LogConstants<float> {
  using Integer = int32_t;
  static constexpr int terms = 5;
  static constexpr Integer bias = 127;
  static constexpr Integer root_of_half = 0x3f3504f3;  // the bits of sqrt(1/2)
};
template <>
struct LogConstants<double> {
  using Integer = int64_t;
  static constexpr int terms = 11;
  static constexpr Integer bias = 1023;
  static constexpr Integer root_of_half = 0x3fe6a09e667f3bcd;
};

/// -1 gives a finite number, ln(2^-127) (double: 2^-1023); NaN gives NaN.
template <class A>
MY_OPS_INLINE Vec<A> log1p_of(Vec<A> u) {
  using K = LogConstants<A>;
  using E = ExpConstants<A>;
  using Integers = Vec<typename K::Integer>;
  const Vec<A> w = u + A(1);
  const Vec<A> lost = u - (w - A(1));  // by rounding w; exact
  const Integers bits = bit_cast<Integers>(w);
  const Integers k = (bits - K::root_of_half) >> E::mantissa_bits;
  const Vec<A> m = bit_cast<Vec<A>>(bits - (k << E::mantissa_bits));
  const Vec<A> per_power = bit_cast<Vec<A>>((K::bias - k) << E::mantissa_bits);  // 2^-k
  const Vec<A> f = (m - A(1)) + lost * per_power;                                // where k = 0, that is u
  // ln(1 + f) = 2 * artanh(s), s = f / (2 + f), and 2 * s = f - s * f.
  const Vec<A> s = f / (f + A(2));
  const Vec<A> q = s * s;
  Vec<A> series = Vec<A>{} + A(2) / A(2 * K::terms - 1);
  for (int j = K::terms - 2; j > 0; --j) series = series * q + A(2) / static_cast<A>(2 * j + 1);
  const Vec<A> powers = __builtin_convertvector(k, Vec<A>);
  return (f - (s * (f - q * series) - powers * E::ln2_low)) + powers * E::ln2_high;
}

}  // namespace
}  // namespace my_ops::cpu
