// What math/epilogue.h needs of vectors.
#pragma once

#include <type_traits>

#include "cpu/simd/exp.h"
#include "cpu/simd/log1p.h"

namespace my_ops::cpu {
namespace {

/// The lane type of a vector.
template <class V>
using Lane = std::remove_cvref_t<decltype(V{}[0])>;

struct VectorMath {
  // What x86's instructions do, which compilers do not find in the comparison.
  template <class V>
  MY_OPS_INLINE static V lesser(V a, V b) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<V, Vec<float>>) {
      return _mm512_min_ps(a, b);
    } else {
      return _mm512_min_pd(a, b);
    }
#elif defined(__AVX2__)
    if constexpr (std::is_same_v<V, Vec<float>>) {
      return _mm256_min_ps(a, b);
    } else {
      return _mm256_min_pd(a, b);
    }
#else
    return a < b ? a : b;
#endif
  }
  template <class V>
  MY_OPS_INLINE static V greater(V a, V b) {
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<V, Vec<float>>) {
      return _mm512_max_ps(a, b);
    } else {
      return _mm512_max_pd(a, b);
    }
#elif defined(__AVX2__)
    if constexpr (std::is_same_v<V, Vec<float>>) {
      return _mm256_max_ps(a, b);
    } else {
      return _mm256_max_pd(a, b);
    }
#else
    return a > b ? a : b;
#endif
  }
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
  template <class V>
  MY_OPS_INLINE static V log1p(V x) {
    return log1p_of<Lane<V>>(x);
  }
};

}  // namespace
}  // namespace my_ops::cpu
