// The activations that can follow a batch normalization. Without torch, for the kernels of every device.
#pragma once

#include <cstdint>

namespace my_ops::plan {

/// `slope` is the one parameter that an activation may have: that of leaky_relu for z <= 0, and alpha of elu.
enum class Activation : int32_t { identity, relu, leaky_relu, relu6, elu, silu, gelu_tanh };

/// Whether act(z) is piecewise linear with a kink: its derivative needs a bit of each z, whether act'(z) = 1.
static inline bool needs_only_bit(Activation activation) {
  return activation == Activation::relu || activation == Activation::leaky_relu || activation == Activation::relu6;
}

}  // namespace my_ops::plan
