// bfloat16: the high half of a float. One load of 32-bit lanes brings two values per lane, the even one in the low half
// and the odd one in the high half; the even ones are the first vector of the pair, so that widening is one instruction
// each and narrowing needs no permutation.
#pragma once

#include "cpu/simd/pair.h"

namespace my_ops::cpu {
namespace {

MY_OPS_INLINE Pair widen(Bits bits) {
  return {bit_cast<Vec<float>>(bits << 16), bit_cast<Vec<float>>(bits & 0xffff0000)};
}

/// The nearest bfloat16, ties to even, in the high half of each lane. A NaN stays one unless all its low bits are set:
/// arithmetic makes no such NaN, widening neither, and coefficients pass through quiet().
MY_OPS_INLINE Bits rounded(Vec<float> v) {
  const Bits bits = bit_cast<Bits>(v);
  return bits + 0x7fff + ((bits >> 16) & 1);
}

#if defined(__AVX512F__)
/// As rounded(), of both vectors at once: the high halves, and what the sums of the low halves carry into them. That is
/// the highest bit of their averages, (low + middle + 1) / 2.
MY_OPS_INLINE Bits narrow(Pair pair) {
  using Shorts = VecOf<uint16_t>::type;
  const Bits even = bit_cast<Bits>(pair.first);
  const Bits odd = bit_cast<Bits>(pair.second);
  const Bits high = (even >> 16) | (odd & 0xffff0000);
  const Bits low = (even & 0xffff) | (odd << 16);
  const Bits middle = (high & 0x00010001) | 0x7ffe7ffe;
  const auto average = bit_cast<Shorts>(_mm512_avg_epu16(bit_cast<__m512i>(low), bit_cast<__m512i>(middle)));
  return bit_cast<Bits>(bit_cast<Shorts>(high) + (average >> 15));
}
#else
MY_OPS_INLINE Bits narrow(Pair pair) { return (rounded(pair.first) >> 16) | (rounded(pair.second) & 0xffff0000); }
#endif

MY_OPS_INLINE Pair load(const bfloat16* p, All, Pair) { return widen(bit_cast_from<Bits>(p)); }
MY_OPS_INLINE void store(bfloat16* p, All, Pair pair) {
  const Bits bits = narrow(pair);
  std::memcpy(p, &bits, sizeof(bits));
}
MY_OPS_INLINE void store(bfloat16* p, Stream, Pair pair) { stream(p, narrow(pair)); }

#if defined(__AVX512F__)
MY_OPS_INLINE Pair load(const bfloat16* p, First first, Pair fill) {
  const Pair pair = widen(bit_cast<Bits>(_mm512_maskz_loadu_epi16(mask_of(first.n), p)));
  const auto even = static_cast<__mmask16>(mask_of((first.n + 1) / 2));
  const auto odd = static_cast<__mmask16>(mask_of(first.n / 2));
  return {_mm512_mask_mov_ps(fill.first, even, pair.first), _mm512_mask_mov_ps(fill.second, odd, pair.second)};
}
MY_OPS_INLINE void store(bfloat16* p, First first, Pair pair) {
  _mm512_mask_storeu_epi16(p, mask_of(first.n), bit_cast<__m512i>(narrow(pair)));
}
#else
MY_OPS_INLINE Pair load(const bfloat16* p, First first, Pair fill) {
  bfloat16 buffer[kPack<bfloat16>] = {};
  for (int64_t i = 0; i < first.n; ++i) buffer[i] = p[i];
  const Pair pair = load(buffer, All{}, fill);
  for (int64_t i = 0; 2 * i < first.n; ++i) fill.first[i] = pair.first[i];
  for (int64_t i = 0; 2 * i + 1 < first.n; ++i) fill.second[i] = pair.second[i];
  return fill;
}
MY_OPS_INLINE void store(bfloat16* p, First first, Pair pair) {
  bfloat16 buffer[kPack<bfloat16>];
  store(buffer, All{}, pair);
  for (int64_t i = 0; i < first.n; ++i) p[i] = buffer[i];
}
#endif

}  // namespace
}  // namespace my_ops::cpu
