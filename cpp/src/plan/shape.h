// The facts about an input that decide how it is walked. Without torch, for the kernels of every device and the tests.
#pragma once

#include <cstdint>

namespace my_ops::plan {

enum class Layout {
  contiguous,    // (N, C, S): a channel is N runs of S values
  channels_last  // (M, C): a row holds one value of every channel
};

/// N batch, C channels, S product of the spatial sizes; M = N*S values per channel. A channel's values are numbered
/// 0..M-1 in memory order: value v of channel c lies at element (v/S*C + c)*S + v%S when contiguous, else at v*C + c.
struct Shape {
  int64_t n;
  int64_t c;
  int64_t s;
  Layout layout;
};

/// A rectangle of work: the values b..e-1 of the channels c0..c1-1. Where images are problems of their own, those of
/// one image.
struct Region {
  int64_t c0;
  int64_t c1;
  int64_t b;
  int64_t e;
  int64_t image = 0;
};

}  // namespace my_ops::plan
