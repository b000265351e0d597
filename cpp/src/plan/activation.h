// The activations that can follow a batch normalization. Without torch, for the kernels of every device.
#pragma once

#include <cstdint>

namespace my_ops::plan {

/// `slope` is the one parameter that an activation may have: that of leaky_relu for z <= 0, and alpha of elu.
enum class Activation : int32_t { identity, relu, leaky_relu, elu, silu, gelu_tanh };

/// Whether act(z) is piecewise linear: of z, its derivative needs only the sign.
static inline bool needs_only_sign(Activation activation) {
  return activation == Activation::relu || activation == Activation::leaky_relu;
}

}  // namespace my_ops::plan
