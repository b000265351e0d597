// What the passes share that write a tensor, forward and backward.
#pragma once

#include <type_traits>

#include "cpu/simd/rows.h"
#include "cpu/simd/runs.h"

namespace my_ops::cpu {
namespace {

/// The elements of a run before whole vectors can be stored the Full way.
template <class Full, class T>
MY_OPS_INLINE int64_t head(const T* out) {
  return std::is_same_v<Full, Stream> ? unaligned(out) : 0;
}

/// Runs and what is walked in order align themselves; rows are streamed if all of them start aligned.
template <class T>
MY_OPS_INLINE bool may_stream(const T* out, const Shape& shape, const Region& region) {
  if (!plan::by_rows(shape) || plan::in_order(shape, region.c1 - region.c0, sizeof(T))) return true;
  const Rows rows = rows_of<T>(shape, region);
  return unaligned(out + rows.offset) == 0 && rows.stride % kPack<T> == 0;
}

/// out[r * apart] = map(r, r * apart) for the packs side by side. All are loaded before any is stored: a load has to
/// wait for a store before it whose address has the same 12 low bits, and images are often whole pages apart.
template <class T, class Side, class Lanes, class Map>
MY_OPS_INLINE void map_packs(T* out, Side side, Lanes lanes, Map map) {
  if constexpr (!std::is_same_v<Lanes, Stream>) {
    for (int r = 0; r < side.count; ++r) ask_for_result(out + r * side.apart);
  }
  Pack<T> values[side.count];
  for (int r = 0; r < side.count; ++r) values[r] = map(r, r * side.apart);
  for (int r = 0; r < side.count; ++r) store(out + r * side.apart, lanes, values[r]);
}

}  // namespace
}  // namespace my_ops::cpu
