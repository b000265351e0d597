// Element types, vectors of them, and per-channel arguments of any type and stride.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>
#include <type_traits>

#include "cuda/kernels.h"

namespace my_ops::cuda {

using bfloat16 = __nv_bfloat16;
using float16 = __half;

/// float64 accumulates in itself, everything else in float32.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class A, class T>
__device__ __forceinline__ A convert(T value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return __bfloat162float(value);
  } else if constexpr (std::is_same_v<T, float16>) {
    return __half2float(value);
  } else {
    return static_cast<A>(value);
  }
}

template <class T, class A>
__device__ __forceinline__ T rounded(A value) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return __float2bfloat16(static_cast<float>(value));
  } else if constexpr (std::is_same_v<T, float16>) {
    return __float2half(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

/// V neighbours, moved in one instruction.
template <class T, int V>
struct alignas(sizeof(T) * V) Packed {
  T values[V];
};

/// Value i in the accumulation type. bfloat16 is taken from whole words, the upper half of a float32: as single 16-bit
/// values, each would occupy a register of its own.
template <class A, class T, int V>
__device__ __forceinline__ A value(const Packed<T, V>& packed, int i) {
  if constexpr (std::is_same_v<T, bfloat16> && V > 1) {
    uint32_t word;
    memcpy(&word, packed.values + i / 2 * 2, sizeof word);
    return __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
  } else {
    return convert<A>(packed.values[i]);
  }
}

/// All values in the accumulation type, and back.
template <class A, class T, int V>
__device__ __forceinline__ void unpack(const Packed<T, V>& packed, A (&values)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) values[i] = value<A>(packed, i);
}
template <class T, class A, int V>
__device__ __forceinline__ Packed<T, V> packed(const A (&values)[V]) {
  Packed<T, V> result;
#pragma unroll
  for (int i = 0; i < V; ++i) result.values[i] = rounded<T>(values[i]);
  return result;
}

template <int V, class T>
__device__ __forceinline__ Packed<T, V> load(const T* address) {
  return *reinterpret_cast<const Packed<T, V>*>(address);
}

template <int V, class T>
__device__ __forceinline__ void store(T* address, const Packed<T, V>& packed) {
  *reinterpret_cast<Packed<T, V>*>(address) = packed;
}

/// Element c of a vector; `absent` if there is no vector.
template <class A>
__device__ A read(const Vector& vector, int64_t c, A absent) {
  if (vector.data == nullptr) return absent;
  const int64_t i = (vector.period == 0 ? c : c % vector.period) * vector.stride;
  switch (vector.type) {
    case ElementType::float64:
      return static_cast<A>(static_cast<const double*>(vector.data)[i]);
    case ElementType::float32:
      return static_cast<const float*>(vector.data)[i];
    case ElementType::bfloat16:
      return convert<float>(static_cast<const bfloat16*>(vector.data)[i]);
    default:
      return convert<float>(static_cast<const float16*>(vector.data)[i]);
  }
}

/// Writes element c of a vector, if there is one.
__device__ inline void write(const Vector& vector, int64_t c, double value) {
  if (vector.data == nullptr) return;
  const int64_t i = c * vector.stride;
  switch (vector.type) {
    case ElementType::float64:
      static_cast<double*>(vector.data)[i] = value;
      break;
    case ElementType::float32:
      static_cast<float*>(vector.data)[i] = static_cast<float>(value);
      break;
    case ElementType::bfloat16:
      static_cast<bfloat16*>(vector.data)[i] = rounded<bfloat16>(static_cast<float>(value));
      break;
    default:
      static_cast<float16*>(vector.data)[i] = rounded<float16>(static_cast<float>(value));
  }
}

}  // namespace my_ops::cuda
