// Vectors of the instruction set that this translation unit is compiled for.
//
// Vec<A> holds kLanes<A> values of the accumulation type A, with the operators of g++'s and clang's vector extension.
// Everything is in an anonymous namespace: the same templates are compiled several times, and the linker must not take
// one instruction set's copy for another's.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu/kernels.h"

#define MY_OPS_INLINE inline __attribute__((always_inline))

// For loops that index an array of accumulators: rolled up, these would lie in memory instead of registers.
#define MY_OPS_UNROLLED _Pragma("GCC unroll 16")

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

using Bits = Vec<uint32_t>;

/// How many values take part: all of a load, or the first n (1 <= n < all). Stream is All, stored past the cache.
struct All {};
struct Stream {};
struct First {
  int64_t n;
};

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

/// What one load of T gives, in the accumulation type: a vector (bfloat16: two, see bfloat16.h).
template <class T>
struct PackOf {
  using type = Vec<Accumulator<T>>;
};
template <class T>
using Pack = typename PackOf<T>::type;

/// Values in a pack.
template <class T>
constexpr int64_t kPack = sizeof(Pack<T>) / sizeof(Accumulator<T>);

// Loads and stores of float and double. `fill` is what a pack holds beyond the first n values, so that a partial load
// needs no other treatment.

MY_OPS_INLINE Vec<float> load(const float* p, All, Vec<float>) { return bit_cast_from<Vec<float>>(p); }
MY_OPS_INLINE Vec<double> load(const double* p, All, Vec<double>) { return bit_cast_from<Vec<double>>(p); }
MY_OPS_INLINE void store(float* p, All, Vec<float> v) { std::memcpy(p, &v, sizeof(v)); }
MY_OPS_INLINE void store(double* p, All, Vec<double> v) { std::memcpy(p, &v, sizeof(v)); }

// The first n lanes. AVX-512 has masks for every width; elsewhere the values pass through a buffer.

#if defined(__AVX512F__)
MY_OPS_INLINE uint32_t mask_of(int64_t n) { return (1u << n) - 1; }

MY_OPS_INLINE Vec<float> load(const float* p, First first, Vec<float> fill) {
  return _mm512_mask_loadu_ps(fill, static_cast<__mmask16>(mask_of(first.n)), p);
}
MY_OPS_INLINE Vec<double> load(const double* p, First first, Vec<double> fill) {
  return _mm512_mask_loadu_pd(fill, static_cast<__mmask8>(mask_of(first.n)), p);
}
MY_OPS_INLINE void store(float* p, First first, Vec<float> v) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(mask_of(first.n)), v);
}
MY_OPS_INLINE void store(double* p, First first, Vec<double> v) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(mask_of(first.n)), v);
}
#else
template <class A>
MY_OPS_INLINE Vec<A> load(const A* p, First first, Vec<A> fill) {
  A buffer[kLanes<A>];
  std::memcpy(buffer, &fill, sizeof(fill));
  for (int64_t i = 0; i < first.n; ++i) buffer[i] = p[i];
  return bit_cast_from<Vec<A>>(buffer);
}
template <class A>
MY_OPS_INLINE void store(A* p, First first, Vec<A> v) {
  for (int64_t i = 0; i < first.n; ++i) p[i] = v[i];
}
#endif

// Streaming stores do not read the line they fill from memory first: a third of the traffic of a copy. The address must
// be a multiple of the store's size. end_stream() before others may read.

#if defined(__AVX2__)
template <class T, class V>
MY_OPS_INLINE void stream(T* p, V v) {
  if constexpr (sizeof(v) == sizeof(__m128i)) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), bit_cast<__m128i>(v));
  } else if constexpr (sizeof(v) == sizeof(__m256i)) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bit_cast<__m256i>(v));
  } else {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bit_cast<__m512i>(v));
#endif
  }
}
MY_OPS_INLINE void end_stream() { _mm_sfence(); }
#else
template <class T, class V>
MY_OPS_INLINE void stream(T* p, V v) {
  std::memcpy(p, &v, sizeof(v));
}
MY_OPS_INLINE void end_stream() {}
#endif

MY_OPS_INLINE void store(float* p, Stream, Vec<float> v) { stream(p, v); }
MY_OPS_INLINE void store(double* p, Stream, Vec<double> v) { stream(p, v); }

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

}  // namespace
}  // namespace my_ops::cpu
