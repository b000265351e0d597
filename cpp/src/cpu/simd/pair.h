// A load of 16-bit values as two vectors of floats. Which value is in which lane is the type's own affair: bfloat16.h
// and float16.h.
#pragma once

#include "cpu/simd/vec.h"

namespace my_ops::cpu {
namespace {

struct Pair {
  Vec<float> first;
  Vec<float> second;
};

MY_OPS_INLINE Pair operator+(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }
MY_OPS_INLINE Pair operator-(Pair a, Pair b) { return {a.first - b.first, a.second - b.second}; }
MY_OPS_INLINE Pair operator*(Pair a, Pair b) { return {a.first * b.first, a.second * b.second}; }
MY_OPS_INLINE Pair& operator+=(Pair& a, Pair b) { return a = a + b; }

template <>
struct PackOf<bfloat16> {
  using type = Pair;
};
template <>
struct PackOf<float16> {
  using type = Pair;
};

}  // namespace
}  // namespace my_ops::cpu
