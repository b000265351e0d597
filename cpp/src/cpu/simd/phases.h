// The table of all phases, for one instruction set.
#pragma once

#include "cpu/simd/backward_phases.h"
#include "cpu/simd/channels.h"
#include "cpu/simd/forward_phases.h"
#include "cpu/simd/requests.h"

namespace my_ops::cpu {
namespace {

template <class T>
constexpr Kernels<T> kernels_of() {
  using A = Accumulator<T>;
  return {&stats<T>,
          &finish_forward<A>,
          &finish_given<A>,
          &apply<T>,
          &backward_reduce<T>,
          &finish_backward<A>,
          &backward_apply<T>,
          &act_apply<T>,
          &act_backward_reduce<T>,
          &act_backward_apply<T>};
}

constexpr KernelTable make_table() {
  return {&merge_moments,       &add, kCacheShare, kernels_of<double>(), kernels_of<float>(), kernels_of<bfloat16>(),
          kernels_of<float16>()};
}

}  // namespace
}  // namespace my_ops::cpu
