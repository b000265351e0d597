// What follows z = batchnorm(x) in the same pass: what is stored for z, and dz from dy. The maps and the reduction of
// the gradient are templates over it.
//
// An Epilogue
//   More<V> more(element)            what it reads of a vector besides the inputs, together with these
//   output(z, more, element)         replaces the z of a vector by what is stored for them
//   Z z_of(channel, invstd)          what gradient() needs to compute z again, from x - mean
//   gradient(dy, more, z)            replaces dy by dz; z(i) computes z of value i, for those that need it
//   keep(dz, z_of_value, element)    stores dz, and what follows from it alone, where they are wanted
//   replaces()                       whether the second pass is to find dz, rounded, in the place of dy
#pragma once

#include "cuda/reduce.cuh"
#include "math/epilogue.h"

namespace my_ops::cuda {

/// Batch normalization alone.
template <class T>
struct Plain {
  using A = Accumulator<T>;
  struct Z {
    __device__ A operator()(A d) const { return d; }
  };
  template <int V>
  struct More {};

  template <int V>
  __device__ static More<V> more(int64_t) {
    return {};
  }
  template <int V>
  __device__ static void output(A (&)[V], const More<V>&, int64_t) {}
  __device__ static Z z_of(int64_t, A) { return {}; }
  template <int V, class OfValue>
  __device__ static void gradient(A (&)[V], const More<V>&, OfValue) {}
  template <int V, class OfValue>
  __device__ static void keep(const A (&)[V], OfValue, int64_t) {}
  __device__ static constexpr bool replaces() { return false; }
};

struct DeviceMath {
  template <class A>
  __device__ static A lesser(A a, A b) {
    return a < b ? a : b;
  }
  template <class A>
  __device__ static A greater(A a, A b) {
    return a > b ? a : b;
  }
  template <class A>
  __device__ static A exp(A value) {
    return std::exp(value);
  }
  template <class A>
  __device__ static A expm1(A value) {
    return std::expm1(value);
  }
};

/// Writes the bits of a vector, bit `element` % 8 and up of byte `element` / 8. If so said, the lanes whose vectors
/// share a byte are neighbours and all here, and one of them writes it; else bits are joined to zeros.
template <int V>
__device__ void write_bits(uint8_t* mask, uint32_t bits, bool by_bytes, int64_t element) {
  if (!by_bytes) {
    atomicOr(reinterpret_cast<unsigned*>(mask) + element / 32, bits << (element % 32));
    return;
  }
  const Group byte(8 / V);
  bits <<= element % 8;
  for (int32_t distance = 1; distance < byte.size; distance *= 2) {
    bits |= __shfl_xor_sync(byte.mask, bits, distance);
  }
  if (byte.lane == 0) mask[element / 8] = static_cast<uint8_t>(bits);
}

/// act(z + residual). Which activation is asked once per vector, by all threads alike: passes are bound by memory, and
/// a kernel of its own for each would be five times as many. All pointers may be null.
template <class T>
struct Activated {
  using A = Accumulator<T>;

  struct Z {
    A scale;
    A shift;
    __device__ A operator()(A d) const { return d * scale + shift; }
  };

  /// Of the residual; backward by a mask, whose bits are the first word instead: there it stands for the residual.
  template <int V>
  union More {
    Packed<T, V> residual;
    uint32_t bits;
  };

  plan::Activation activation;
  A slope;  // where the piecewise linear ones have not slope 1; alpha of elu
  const T* residual;
  const uint8_t* mask;  // backward: where act'(z) = 1, which is all that is asked of z
  uint8_t* written;     // forward: the same
  bool by_bytes;
  Vector gamma;
  Vector beta;
  T* dz;
  T* dx;  // eval: dz * gamma * invstd
  bool replaced;

  template <int V>
  __device__ __forceinline__ More<V> more(int64_t element) const {
    More<V> result{};
    if (residual != nullptr) result.residual = load<V>(residual + element);
    if (mask != nullptr) result.bits = static_cast<uint32_t>(mask[element / 8]) >> (element % 8);
    return result;
  }

  template <int V>
  __device__ __forceinline__ void output(A (&z)[V], const More<V>& more, int64_t element) const {
    if (residual != nullptr) {
#pragma unroll
      for (int i = 0; i < V; ++i) z[i] += value<A>(more.residual, i);
    }
    if (written != nullptr) write_bits<V>(written, bits_of(z), by_bytes, element);
    with_activation([&](const auto& act) {
#pragma unroll
      for (int i = 0; i < V; ++i) z[i] = act.forward(z[i]);
    });
  }

  __device__ Z z_of(int64_t channel, A invstd) const {
    return {read(gamma, channel, A(1)) * invstd, read(beta, channel, A(0))};
  }

  template <int V, class OfValue>
  __device__ __forceinline__ void gradient(A (&dy)[V], const More<V>& more, OfValue z_of_value) const {
    if (mask != nullptr) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        if ((more.bits >> i & 1) == 0) dy[i] = slope == A(0) ? A(0) : math::Select<A>{slope}.outside(dy[i]);
      }
      return;
    }
    with_activation([&](const auto& act) {
#pragma unroll
      for (int i = 0; i < V; ++i) dy[i] = act.backward(dy[i], z_of_value(i) + value<A>(more.residual, i));
    });
  }

  template <int V, class OfValue>
  __device__ __forceinline__ void keep(const A (&gradient)[V], OfValue z_of_value, int64_t element) const {
    if (dz != nullptr) store<V>(dz + element, packed<T>(gradient));
    if (dx == nullptr) return;
    A scaled[V];
#pragma unroll
    for (int i = 0; i < V; ++i) scaled[i] = gradient[i] * z_of_value(i).scale;
    store<V>(dx + element, packed<T>(scaled));
  }

  __device__ bool replaces() const { return replaced; }

 private:
  /// Bit i: act'(z[i]) = 1, of a piecewise linear one.
  template <int V>
  __device__ __forceinline__ uint32_t bits_of(const A (&z)[V]) const {
    const bool clamps = activation == plan::Activation::relu6;
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < V; ++i)
      bits |= ((clamps ? math::Clamp<A, DeviceMath>{}.inside(z[i]) : z[i]) > A(0) ? 1u : 0u) << i;
    return bits;
  }

  template <class Use>
  __device__ __forceinline__ void with_activation(Use use) const {
    switch (activation) {
      case plan::Activation::relu:
        return use(math::Relu<A, DeviceMath>{});
      case plan::Activation::relu6:
        return use(math::Clamp<A, DeviceMath>{});
      case plan::Activation::elu:
        return use(math::Elu<A, DeviceMath>{slope});
      case plan::Activation::silu:
        return use(math::Silu<A, DeviceMath>{});
      case plan::Activation::gelu_tanh:
        return use(math::GeluTanh<A, DeviceMath>{});
      default:
        return use(math::Select<A>{slope});
    }
  }
};

}  // namespace my_ops::cuda
