// The map of the forward operators with an activation.
#pragma once

#include "cpu/elements.h"
#include "plan/problem.h"

namespace my_ops::cpu {

/// y = act(z) with z = (x - center) * scale + shift, on a region. y may be x.
template <class T, class A = Accumulator<T>>
auto act_map(const at::Tensor& x, const at::Tensor& y, const ForwardCoefficients<A>& coefficients,
             const Epilogue<T>& epilogue) {
  const plan::Shape shape = plan::shape_of(x);
  const bool stream = streams(y, {x.const_data_ptr(), epilogue.residual});
  return [=, in = read<T>(x), out = write<T>(y)](const plan::Region& region) {
    kernels_of<T>().act_apply(in, out, shape, region, coefficients, epilogue, stream);
  };
}

}  // namespace my_ops::cpu
