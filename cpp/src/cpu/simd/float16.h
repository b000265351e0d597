// float16: the first halves of a load is the first vector of the pair. Narrowing rounds to nearest even and keeps NaN a
// NaN.
#pragma once

#include "cpu/simd/pair.h"

namespace my_ops::cpu {
namespace {

using Halves = VecOf<uint16_t, kVecBytes / 2>::type;  // one 16-bit value per lane of a vector of floats

#if defined(__AVX512F__)
MY_OPS_INLINE Vec<float> widen(Halves halves) { return _mm512_cvtph_ps(bit_cast<__m256i>(halves)); }
MY_OPS_INLINE Halves narrow(Vec<float> v) {
  return bit_cast<Halves>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__AVX2__)
MY_OPS_INLINE Vec<float> widen(Halves halves) { return _mm256_cvtph_ps(bit_cast<__m128i>(halves)); }
MY_OPS_INLINE Halves narrow(Vec<float> v) {
  return bit_cast<Halves>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
MY_OPS_INLINE Vec<float> widen(Halves halves) {
  const Bits h = __builtin_convertvector(halves, Bits);
  const Bits sign = (h & 0x8000) << 16;
  const Bits rest = h & 0x7fff;
  // Normal numbers: move the fields and rebias the exponent by 127 - 15. Subnormals: multiples of 2^-24.
  const Bits normal = (rest << 13) + (112u << 23);
  const Bits special = (rest << 13) | 0x7f800000;
  const Bits small = bit_cast<Bits>(__builtin_convertvector(rest, Vec<float>) * 0x1p-24f);
  const Bits magnitude = rest >= 0x7c00 ? special : (rest < 0x0400 ? small : normal);
  return bit_cast<Vec<float>>(magnitude | sign);
}
MY_OPS_INLINE Halves narrow(Vec<float> v) {
  const Bits bits = bit_cast<Bits>(v);
  const Bits sign = (bits >> 16) & 0x8000;
  const Bits a = bits & 0x7fffffff;
  // Below 2^-14 the float sum with 0.5 has an ulp of 2^-24, the halves's: the addition itself rounds.
  const Bits small = bit_cast<Bits>(bit_cast<Vec<float>>(a) + 0.5f) - 0x3f000000;
  const Bits normal = ((a + 0xfff + ((a >> 13) & 1)) >> 13) - (112u << 10);
  const Bits infinite = Bits{} + 0x7c00;
  const Bits nan = Bits{} + 0x7e00;
  const Bits finite = a < 0x38800000 ? small : normal;
  const Bits magnitude = a > 0x7f800000 ? nan : (a >= 0x477ff000 ? infinite : finite);
  return __builtin_convertvector(magnitude | sign, Halves);
}
#endif

MY_OPS_INLINE Pair load(const float16* p, All, Pair) {
  return {widen(bit_cast_from<Halves>(p)), widen(bit_cast_from<Halves>(p + kLanes<float>))};
}
MY_OPS_INLINE void store(float16* p, All, Pair pair) {
  const Halves first = narrow(pair.first);
  const Halves second = narrow(pair.second);
  std::memcpy(p, &first, sizeof(first));
  std::memcpy(p + kLanes<float>, &second, sizeof(second));
}

#if defined(__AVX512F__)
MY_OPS_INLINE void store(float16* p, Stream, Pair pair) {
  const auto first = _mm512_castsi256_si512(bit_cast<__m256i>(narrow(pair.first)));
  stream(p, _mm512_inserti64x4(first, bit_cast<__m256i>(narrow(pair.second)), 1));
}
#elif defined(__AVX2__)
MY_OPS_INLINE void store(float16* p, Stream, Pair pair) {
  stream(p, _mm256_set_m128i(bit_cast<__m128i>(narrow(pair.second)), bit_cast<__m128i>(narrow(pair.first))));
}
#else
MY_OPS_INLINE void store(float16* p, Stream, Pair pair) { store(p, All{}, pair); }
#endif

#if defined(__AVX512F__)
MY_OPS_INLINE Pair load(const float16* p, First first, Pair fill) {
  const uint32_t mask = mask_of(first.n);
  const auto low = static_cast<__mmask16>(mask);
  const auto high = static_cast<__mmask16>(mask >> 16);
  return {_mm512_mask_cvtph_ps(fill.first, low, _mm256_maskz_loadu_epi16(low, p)),
          _mm512_mask_cvtph_ps(fill.second, high, _mm256_maskz_loadu_epi16(high, p + kLanes<float>))};
}
MY_OPS_INLINE void store(float16* p, First first, Pair pair) {
  const uint32_t mask = mask_of(first.n);
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(mask), bit_cast<__m256i>(narrow(pair.first)));
  _mm256_mask_storeu_epi16(p + kLanes<float>, static_cast<__mmask16>(mask >> 16),
                           bit_cast<__m256i>(narrow(pair.second)));
}
#else
MY_OPS_INLINE Pair load(const float16* p, First first, Pair fill) {
  float16 buffer[kPack<float16>] = {};
  for (int64_t i = 0; i < first.n; ++i) buffer[i] = p[i];
  const Pair pair = load(buffer, All{}, fill);
  for (int64_t i = 0; i < first.n; ++i) {
    if (i < kLanes<float>) {
      fill.first[i] = pair.first[i];
    } else {
      fill.second[i - kLanes<float>] = pair.second[i - kLanes<float>];
    }
  }
  return fill;
}
MY_OPS_INLINE void store(float16* p, First first, Pair pair) {
  float16 buffer[kPack<float16>];
  store(buffer, All{}, pair);
  for (int64_t i = 0; i < first.n; ++i) p[i] = buffer[i];
}
#endif

}  // namespace
}  // namespace my_ops::cpu
