// From the arguments of a launcher to those of a kernel, for the operators with an activation.
#pragma once

#include "cuda/epilogue.cuh"
#include "cuda/launch.cuh"

namespace my_ops::cuda {

template <class T>
Activated<T> activated(const Epilogue& a, const Tiling& tiling) {
  const bool identity = a.activation == plan::Activation::identity;
  const bool stops = a.activation == plan::Activation::relu || a.activation == plan::Activation::relu6;
  Activated<T> epilogue{};
  const bool leaks_nothing = a.activation == plan::Activation::leaky_relu && a.slope == 0;
  epilogue.activation = leaks_nothing ? plan::Activation::relu : a.activation;
  epilogue.slope = static_cast<Accumulator<T>>(identity ? 1 : stops ? 0 : a.slope);
  epilogue.residual = static_cast<const T*>(a.residual);
  epilogue.mask = a.mask;
  epilogue.written = a.written;
  epilogue.by_bytes = mask_by_bytes(tiling);
  epilogue.beta = a.beta;
  return epilogue;
}

}  // namespace my_ops::cuda
