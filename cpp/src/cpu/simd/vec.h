// Vectors of the instruction set that this translation unit is compiled for.
//
// Vec<A> holds kLanes<A> values of the accumulation type A, with the operators of g++'s and clang's vector extension.
// load and store convert from and to the element type T. Everything is in an anonymous namespace: the same templates
// are compiled three times, and the linker must not take one instruction set's copy for another's.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu/kernels.h"

#define MY_OPS_INLINE inline __attribute__((always_inline))

namespace my_ops::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

template <class A>
constexpr int kLanes = kVecBytes / sizeof(A);

template <class A, int kBytes = kVecBytes>
struct VecOf {
  typedef A type __attribute__((vector_size(kBytes)));
};
template <class A>
using Vec = typename VecOf<A>::type;

using Half = VecOf<uint16_t, kVecBytes / 2>::type;  // one 16-bit value per float lane
using Bits = Vec<uint32_t>;

/// How many lanes take part: all, or the first n (1 <= n < lanes). Stream is All, stored past the cache.
struct All {};
struct Stream {};
struct First {
  int64_t n;
};

template <class A>
MY_OPS_INLINE Vec<A> broadcast(A a) {
  return a - Vec<A>{};
}

template <class To, class From>
MY_OPS_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <class To>
MY_OPS_INLINE To bit_cast_from(const void* p) {
  To to;
  std::memcpy(&to, p, sizeof(to));
  return to;
}

// 16-bit lanes to 32-bit ones and back (the low half). By name: g++ 12 makes three instructions of a convertvector.

#if defined(__AVX512F__)
MY_OPS_INLINE Bits zero_extend(Half half) { return bit_cast<Bits>(_mm512_cvtepu16_epi32(bit_cast<__m256i>(half))); }
MY_OPS_INLINE Half truncate(Bits bits) { return bit_cast<Half>(_mm512_cvtepi32_epi16(bit_cast<__m512i>(bits))); }
#elif defined(__AVX2__)
MY_OPS_INLINE Bits zero_extend(Half half) { return bit_cast<Bits>(_mm256_cvtepu16_epi32(bit_cast<__m128i>(half))); }
MY_OPS_INLINE Half truncate(Bits bits) {
  const __m256i wide = bit_cast<__m256i>(bits & 0xffff);
  return bit_cast<Half>(_mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1)));
}
#else
MY_OPS_INLINE Bits zero_extend(Half half) { return __builtin_convertvector(half, Bits); }
MY_OPS_INLINE Half truncate(Bits bits) { return __builtin_convertvector(bits, Half); }
#endif

// Conversion of 16-bit values, one vector at a time. Narrowing rounds to nearest even and keeps NaN a NaN.

MY_OPS_INLINE Vec<float> widen(Half half, bfloat16) { return bit_cast<Vec<float>>(zero_extend(half) << 16); }

MY_OPS_INLINE Half narrow(Vec<float> v, bfloat16) {
  const Bits bits = bit_cast<Bits>(v);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits nan = Bits{} + 0x7fc0;
  return truncate(v == v ? rounded : nan);
}

#if defined(__AVX512F__)
MY_OPS_INLINE Vec<float> widen(Half half, float16) { return _mm512_cvtph_ps(bit_cast<__m256i>(half)); }
MY_OPS_INLINE Half narrow(Vec<float> v, float16) {
  return bit_cast<Half>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__AVX2__)
MY_OPS_INLINE Vec<float> widen(Half half, float16) { return _mm256_cvtph_ps(bit_cast<__m128i>(half)); }
MY_OPS_INLINE Half narrow(Vec<float> v, float16) {
  return bit_cast<Half>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#else
MY_OPS_INLINE Vec<float> widen(Half half, float16) {
  const Bits h = zero_extend(half);
  const Bits sign = (h & 0x8000) << 16;
  const Bits rest = h & 0x7fff;
  // Normal numbers: move the fields and rebias the exponent by 127 - 15. Subnormals: multiples of 2^-24.
  const Bits normal = (rest << 13) + (112u << 23);
  const Bits special = (rest << 13) | 0x7f800000;
  const Bits small = bit_cast<Bits>(__builtin_convertvector(rest, Vec<float>) * 0x1p-24f);
  const Bits magnitude = rest >= 0x7c00 ? special : (rest < 0x0400 ? small : normal);
  return bit_cast<Vec<float>>(magnitude | sign);
}
MY_OPS_INLINE Half narrow(Vec<float> v, float16) {
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
  return truncate(magnitude | sign);
}
#endif

// Whole vectors. `fill` is what lanes beyond the first n hold, so a partial load needs no other treatment.

MY_OPS_INLINE Vec<float> load(const float* p, All, Vec<float>) { return bit_cast_from<Vec<float>>(p); }
MY_OPS_INLINE Vec<double> load(const double* p, All, Vec<double>) { return bit_cast_from<Vec<double>>(p); }
template <class T>
MY_OPS_INLINE Vec<float> load(const T* p, All, Vec<float>) {
  return widen(bit_cast_from<Half>(p), T{});
}

MY_OPS_INLINE void store(float* p, All, Vec<float> v) { std::memcpy(p, &v, sizeof(v)); }
MY_OPS_INLINE void store(double* p, All, Vec<double> v) { std::memcpy(p, &v, sizeof(v)); }
template <class T>
MY_OPS_INLINE void store(T* p, All, Vec<float> v) {
  const Half half = narrow(v, T{});
  std::memcpy(p, &half, sizeof(half));
}

// Streaming stores do not read the line they fill from memory first: a third of the traffic of a copy. The address must
// be a multiple of the store's size. end_stream() before others may read.

#if defined(__AVX512F__)
MY_OPS_INLINE void store(float* p, Stream, Vec<float> v) { _mm512_stream_ps(p, v); }
MY_OPS_INLINE void store(double* p, Stream, Vec<double> v) { _mm512_stream_pd(p, v); }
template <class T>
MY_OPS_INLINE void store(T* p, Stream, Vec<float> v) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bit_cast<__m256i>(narrow(v, T{})));
}
MY_OPS_INLINE void end_stream() { _mm_sfence(); }
#elif defined(__AVX2__)
MY_OPS_INLINE void store(float* p, Stream, Vec<float> v) { _mm256_stream_ps(p, v); }
MY_OPS_INLINE void store(double* p, Stream, Vec<double> v) { _mm256_stream_pd(p, v); }
template <class T>
MY_OPS_INLINE void store(T* p, Stream, Vec<float> v) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), bit_cast<__m128i>(narrow(v, T{})));
}
MY_OPS_INLINE void end_stream() { _mm_sfence(); }
#else
template <class T>
MY_OPS_INLINE void store(T* p, Stream, Vec<Accumulator<T>> v) {
  store(p, All{}, v);
}
MY_OPS_INLINE void end_stream() {}
#endif

template <class T>
MY_OPS_INLINE Vec<Accumulator<T>> load(const T* p, Stream, Vec<Accumulator<T>> fill) {
  return load(p, All{}, fill);
}

/// Elements before the first one at which a whole vector may be streamed.
template <class T>
MY_OPS_INLINE int64_t unaligned(const T* p) {
  constexpr auto bytes = sizeof(T) * kLanes<Accumulator<T>>;
  return static_cast<int64_t>((bytes - reinterpret_cast<uintptr_t>(p) % bytes) % bytes / sizeof(T));
}

// The first n lanes. AVX-512 has masks for every width; elsewhere the values pass through a buffer.

#if defined(__AVX512F__)
MY_OPS_INLINE uint32_t mask_of(First first) { return (1u << first.n) - 1; }

MY_OPS_INLINE Vec<float> load(const float* p, First first, Vec<float> fill) {
  return _mm512_mask_loadu_ps(fill, static_cast<__mmask16>(mask_of(first)), p);
}
MY_OPS_INLINE Vec<double> load(const double* p, First first, Vec<double> fill) {
  return _mm512_mask_loadu_pd(fill, static_cast<__mmask8>(mask_of(first)), p);
}
MY_OPS_INLINE void store(float* p, First first, Vec<float> v) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask_of(first)), v);
}
MY_OPS_INLINE void store(double* p, First first, Vec<double> v) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask_of(first)), v);
}
template <class T>
MY_OPS_INLINE Vec<float> load(const T* p, First first, Vec<float> fill) {
  const auto mask = static_cast<__mmask16>(mask_of(first));
  const Half half = bit_cast<Half>(_mm256_maskz_loadu_epi16(mask, p));
  return _mm512_mask_mov_ps(fill, mask, widen(half, T{}));
}
template <class T>
MY_OPS_INLINE void store(T* p, First first, Vec<float> v) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>(mask_of(first)), bit_cast<__m256i>(narrow(v, T{})));
}
#else
template <class T>
MY_OPS_INLINE Vec<Accumulator<T>> load(const T* p, First first, Vec<Accumulator<T>> fill) {
  constexpr int lanes = kLanes<Accumulator<T>>;
  T buffer[lanes] = {};
  for (int64_t i = 0; i < first.n; ++i) buffer[i] = p[i];
  Vec<Accumulator<T>> v = load(buffer, All{}, fill);
  for (int i = 0; i < lanes; ++i) v[i] = i < first.n ? v[i] : fill[i];
  return v;
}
template <class T>
MY_OPS_INLINE void store(T* p, First first, Vec<Accumulator<T>> v) {
  T buffer[kLanes<Accumulator<T>>];
  store(buffer, All{}, v);
  for (int64_t i = 0; i < first.n; ++i) p[i] = buffer[i];
}
#endif

/// Sum of the lanes, pairwise, in double.
template <class A>
MY_OPS_INLINE double sum(Vec<A> v) {
  double lanes[kLanes<A>];
  for (int i = 0; i < kLanes<A>; ++i) lanes[i] = v[i];
  for (int width = kLanes<A> / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

/// body(i, slot, lanes) for the vectors of 0..n-1: i is a vector's first index, slot (0..3) tells apart those that run
/// side by side, and lanes is Full (All or Stream) except for the first `head` elements and a last, incomplete vector.
/// The one remainder loop of all phases.
template <class A, class Full, class Body>
MY_OPS_INLINE void for_vectors(int64_t head, int64_t n, Body body) {
  constexpr int64_t lanes = kLanes<A>;
  int64_t i = 0;
  if (head > 0) {
    i = head < n ? head : n;
    body(0, 2, First{i});
  }
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    body(i, 0, Full{});
    body(i + lanes, 1, Full{});
    body(i + 2 * lanes, 2, Full{});
    body(i + 3 * lanes, 3, Full{});
  }
  for (; i + lanes <= n; i += lanes) body(i, 0, Full{});
  if (i < n) body(i, 1, First{n - i});
}

template <class A, class Body>
MY_OPS_INLINE void for_vectors(int64_t n, Body body) {
  for_vectors<A, All>(0, n, body);
}

/// A scalar of any element type as a double.
MY_OPS_INLINE double to_double(double x) { return x; }
MY_OPS_INLINE double to_double(float x) { return x; }
template <class T>
MY_OPS_INLINE double to_double(T x) {
  return widen(Half{} + x.bits, T{})[0];
}

/// The nearest value that the element type holds.
template <class T>
MY_OPS_INLINE Accumulator<T> rounded_to_element(Accumulator<T> a) {
  if constexpr (sizeof(T) == sizeof(a)) {
    return a;
  } else {
    return widen(narrow(broadcast(a), T{}), T{})[0];
  }
}

}  // namespace
}  // namespace my_ops::cpu
