// What forward and backward have in common: both reduce the values of a channel to two numbers, draw the conclusion
// from these, and map every value with coefficients of its channel. Kernels are templates over three small structs;
// what follows the normalization in the same pass is a parameter of these (epilogue.cuh).
//
// A Reduction
//   kInputs                      tensors read: x, or x and dy
//   epilogue                     whose more() is read with them
//   Seed seed(...)               of a tile and channel, before its values are read: what the terms are relative to
//   terms(seeds, vectors, ...)   two per value, which the kernel sums up
//   Partial partial(...)         of a tile and channel, from the sums of the terms
//
// A Conclusion
//   Partial merge(a, b)          of disjoint tiles
//   Summary conclude(...)        of a channel; writes its results, where told to publish
//
// A Map
//   kInputs, epilogue            as above
//   Coefficients coefficients(channel, summary)
//   map(coefficients, vectors, ...)   the vector of the output
//
// Seeds and coefficients are those of a thread's E channels; value i of its V has those of channel i * E / V.
#pragma once

#include "cuda/elements.cuh"

namespace my_ops::cuda {

/// (mean, M2) or (sum of dy, sum of dy * xhat) of `count` values.
struct Partial {
  double first;
  double second;
  int64_t count;
};

/// (mean, invstd) or (sum of dy, sum of dy * xhat) of a whole channel.
struct Summary {
  double first;
  double second;
};

/// x, and dy where there is one.
template <class T>
struct Inputs {
  const T* tensors[2];
};

}  // namespace my_ops::cuda
