// float16: one vector of floats per load. Narrowing rounds to nearest even and keeps NaN a NaN.
#pragma once

#include "cpu/simd/vec.h"

namespace my_ops::cpu {
namespace {

using Half = VecOf<uint16_t, kVecBytes / 2>::type;  // one 16-bit value per float lane

#if defined(__AVX512F__)
MY_OPS_INLINE Vec<float> widen(Half half) { return _mm512_cvtph_ps(bit_cast<__m256i>(half)); }
MY_OPS_INLINE Half narrow(Vec<float> v) {
  return bit_cast<Half>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__AVX2__)
MY_OPS_INLINE Vec<float> widen(Half half) { return _mm256_cvtph_ps(bit_cast<__m128i>(half)); }
MY_OPS_INLINE Half narrow(Vec<float> v) {
  return bit_cast<Half>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
MY_OPS_INLINE Vec<float> widen(Half half) {
  const Bits h = __builtin_convertvector(half, Bits);
  const Bits sign = (h & 0x8000) << 16;
  const Bits rest = h & 0x7fff;
  // Normal numbers: move the fields and rebias the exponent by 127 - 15. Subnormals: multiples of 2^-24.
  const Bits normal = (rest << 13) + (112u << 23);
  const Bits special = (rest << 13) | 0x7f800000;
  const Bits small = bit_cast<Bits>(__builtin_convertvector(rest, Vec<float>) * 0x1p-24f);
  const Bits magnitude = rest >= 0x7c00 ? special : (rest < 0x0400 ? small : normal);
  return bit_cast<Vec<float>>(magnitude | sign);
}
MY_OPS_INLINE Half narrow(Vec<float> v) {
  const Bits bits = bit_cast<Bits>(v);
  const Bits sign = (bits >> 16) & 0x8000;
  const Bits a = bits & 0x7fffffff;
  // Below 2^-14 the float sum with 0.5 has an ulp of 2^-24, the half's: the addition itself rounds.
  const Bits small = bit_cast<Bits>(bit_cast<Vec<float>>(a) + 0.5f) - 0x3f000000;
  const Bits normal = ((a + 0xfff + ((a >> 13) & 1)) >> 13) - (112u << 10);
  const Bits infinite = Bits{} + 0x7c00;
  const Bits nan = Bits{} + 0x7e00;
  const Bits finite = a < 0x38800000 ? small : normal;
  const Bits magnitude = a > 0x7f800000 ? nan : (a >= 0x477ff000 ? infinite : finite);
  return __builtin_convertvector(magnitude | sign, Half);
}
#endif

MY_OPS_INLINE Vec<float> load(const float16* p, All, Vec<float>) { return widen(bit_cast_from<Half>(p)); }
MY_OPS_INLINE void store(float16* p, All, Vec<float> v) {
  const Half half = narrow(v);
  std::memcpy(p, &half, sizeof(half));
}
MY_OPS_INLINE void store(float16* p, Stream, Vec<float> v) { stream(p, narrow(v)); }

#if defined(__AVX512F__)
MY_OPS_INLINE Vec<float> load(const float16* p, First first, Vec<float> fill) {
  const auto mask = static_cast<__mmask16>(mask_of(first.n));
  return _mm512_mask_cvtph_ps(fill, mask, _mm256_maskz_loadu_epi16(mask, p));
}
MY_OPS_INLINE void store(float16* p, First first, Vec<float> v) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(mask_of(first.n)), bit_cast<__m256i>(narrow(v)));
}
#else
MY_OPS_INLINE Vec<float> load(const float16* p, First first, Vec<float> fill) {
  Half half{};
  for (int64_t i = 0; i < first.n; ++i) half[i] = p[i].bits;
  const Vec<float> v = widen(half);
  for (int64_t i = 0; i < first.n; ++i) fill[i] = v[i];
  return fill;
}
MY_OPS_INLINE void store(float16* p, First first, Vec<float> v) {
  const Half half = narrow(v);
  for (int64_t i = 0; i < first.n; ++i) p[i].bits = half[i];
}
#endif

}  // namespace
}  // namespace my_ops::cpu
