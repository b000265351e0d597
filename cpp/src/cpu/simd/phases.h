// The phases on a region, for one instruction set. Each phase is written for both ways of walking: by runs and by rows.
#pragma once

#include <type_traits>

#include "cpu/simd/channels.h"
#include "cpu/simd/moments.h"
#include "cpu/simd/rows.h"
#include "cpu/simd/runs.h"

namespace my_ops::cpu {
namespace {

// ---- stats: sums of x - pivot and of its square, per channel ----

template <class T, class A = Accumulator<T>>
void stats_by_runs(const T* x, const Shape& shape, const Region& region, const A* pivot, ShiftedSums sums) {
  RunSums<T> accumulators;
  accumulators.run(shape, region, sums.first, sums.second,
                   [&](int64_t c, int64_t element, auto side, int64_t length, Vec<A>& first, Vec<A>& second) {
                     const Pack<T> k = broadcast<T>(pivot[c]);
                     Pack<T> s[kSlots<T>] = {};
                     Pack<T> q[kSlots<T>] = {};
                     for_packs<T>(length, [&](int64_t i, int slot, auto lanes) {
                       for (int r = 0; r < side.count; ++r) {
                         const Pack<T> d = load(x + element + r * side.apart + i, lanes, k) - k;
                         s[(slot + r) % kSlots<T>] += d;
                         q[(slot + r) % kSlots<T>] += d * d;
                       }
                     });
                     first += join<T>(s);
                     second += join<T>(q);
                   });
}

template <class T, class A = Accumulator<T>>
void stats_by_rows(const T* x, const Shape& shape, const Region& region, const A* pivot, ShiftedSums sums) {
  const Rows rows = rows_of<T>(shape, region);
  Columns<T> pivots;
  ColumnSums<T> first(rows, sums.first);
  ColumnSums<T> second(rows, sums.second);
  pivots.expand(rows, pivot);
  for_row_blocks<plan::kSideBySide>(
      rows, ColumnSums<T>::kBlockRows,
      [&](int64_t element, auto side, int64_t columns) {
        for_packs<T>(columns, [&](int64_t j, int, auto lanes) {
          const Pack<T> k = pivots.at(j);
          Pack<T> s{};
          Pack<T> q{};
          for (int r = 0; r < side.count; ++r) {
            const Pack<T> d = load(x + element + r * side.apart + j, lanes, k) - k;
            s += d;
            q += d * d;
          }
          first.add(j, s);
          second.add(j, q);
        });
      },
      [&] {
        first.flush(rows);
        second.flush(rows);
      });
}

template <class T, class A = Accumulator<T>>
void shifted_sums(const T* x, const Shape& shape, const Region& region, const A* pivot, ShiftedSums sums) {
  const auto phase = plan::by_rows(shape) ? stats_by_rows<T> : stats_by_runs<T>;
  phase(x, shape, region, pivot, sums);
}

/// Reads the inaccurate channels again: first with their mean as the pivot; in double what then still has no finite M2,
/// and all of float64, which has no wider type to sum in. By rows, all channels of the region are read again, as they
/// share the lines of memory.
template <class T, class A = Accumulator<T>>
__attribute__((noinline)) void stats_again(const T* x, const Shape& shape, const Region& region, A* pivot,
                                           ShiftedSums sums, double* mean, double* m2) {
  const auto n = static_cast<double>(region.e - region.b);
  const int64_t channels = region.c1 - region.c0;
  const auto channel = [&](int64_t i) { return Region{region.c0 + i, region.c0 + i + 1, region.b, region.e}; };
  bool again[plan::kMaxColumns];
  for (int64_t i = 0; i < channels; ++i) {
    again[i] = !is_accurate(sums.first[i], n, m2[i]);
    const A better = nearest<T>(splat(static_cast<A>(mean[i])))[0];
    if (again[i] && better - better == A(0)) pivot[i] = better;
  }
  constexpr bool wider = sizeof(A) < sizeof(double);
  if (wider && plan::by_rows(shape)) {
    shifted_sums(x, shape, region, pivot, sums);
  } else if (wider) {
    for (int64_t i = 0; i < channels; ++i) {
      if (again[i]) shifted_sums(x, shape, channel(i), pivot + i, {sums.first + i, sums.second + i});
    }
  }
  for (int64_t i = 0; i < channels; ++i) {
    if (!again[i]) continue;
    const bool better =
        wider && moments_of(channel(i), pivot + i, {sums.first + i, sums.second + i}, mean + i, m2 + i) == 0;
    if (!better) moments_in_double(x, shape, region, region.c0 + i, mean + i, m2 + i);
  }
}

template <class T, class A = Accumulator<T>>
void stats(const T* x, const Shape& shape, const Region& region, double* mean, double* m2) {
  ChannelArray<T> pivot;
  double first[plan::kMaxColumns];
  double second[plan::kMaxColumns];
  const ShiftedSums sums{first, second};
  choose_pivots(x, shape, region, pivot);
  shifted_sums(x, shape, region, pivot, sums);
  mean += region.c0;
  m2 += region.c0;
  if (moments_of(region, pivot, sums, mean, m2) > 0) stats_again(x, shape, region, pivot, sums, mean, m2);
}

// ---- apply: y = (x - center) * scale + shift ----

/// The elements of a run before whole vectors can be stored the Full way.
template <class Full, class T>
MY_OPS_INLINE int64_t head(const T* out) {
  return std::is_same_v<Full, Stream> ? unaligned(out) : 0;
}

/// Long runs align themselves; rows are streamed if all of them start aligned.
template <class T>
MY_OPS_INLINE bool may_stream(const T* out, const Shape& shape, const Region& region) {
  if (!plan::by_rows(shape)) return shape.s >= plan::kShortRun;
  const Rows rows = rows_of<T>(shape, region);
  return unaligned(out + rows.offset) == 0 && rows.stride % kPack<T> == 0;
}

/// out[r * apart] = map(r, r * apart) for the packs side by side. All are loaded before any is stored: a load has to
/// wait for a store before it whose address has the same 12 low bits, and images are often whole pages apart.
template <class T, class Side, class Lanes, class Map>
MY_OPS_INLINE void map_packs(T* out, Side side, Lanes lanes, Map map) {
  Pack<T> values[side.count];
  for (int r = 0; r < side.count; ++r) values[r] = map(r, r * side.apart);
  for (int r = 0; r < side.count; ++r) store(out + r * side.apart, lanes, values[r]);
}

template <class Full, class T, class A = Accumulator<T>>
void apply_by_runs(const T* x, T* y, const Shape& shape, const Region& region, const ForwardCoefficients<A>& k) {
  for_all_stretches<T, kTogether<T, Full>>(shape, region, [&](int64_t c, int64_t element, auto side, int64_t length) {
    const Broadcast<T, side.count> center(k.center, c, side);
    const Broadcast<T, side.count> scale(k.scale, c, side);
    const Broadcast<T, side.count> shift(k.shift, c, side);
    for_packs<T, Full>(head<Full>(y + element), length, [&](int64_t i, int, auto lanes) {
      map_packs<T>(y + element + i, side, lanes, [&](int r, int64_t ahead) {
        return (load(x + element + i + ahead, lanes, center[r]) - center[r]) * scale[r] + shift[r];
      });
    });
  });
}

template <class Full, class T, class A = Accumulator<T>>
void apply_by_rows(const T* x, T* y, const Rows& rows, const Region& region, const ForwardCoefficients<A>& k) {
  Columns<T> centers;
  Columns<T> scales;
  Columns<T> shifts;
  centers.expand(rows, k.center + region.c0);
  scales.expand(rows, k.scale + region.c0);
  shifts.expand(rows, k.shift + region.c0);
  for_rows<kTogether<T, Full>>(rows, [&](int64_t element, auto side, int64_t columns) {
    for_packs<T, Full>(0, columns, [&](int64_t j, int, auto lanes) {
      const Pack<T> center = centers.at(j);
      const Pack<T> scale = scales.at(j);
      const Pack<T> shift = shifts.at(j);
      map_packs<T>(y + element + j, side, lanes, [&](int, int64_t ahead) {
        return (load(x + element + j + ahead, lanes, center) - center) * scale + shift;
      });
    });
  });
}

template <class Full, class T, class A = Accumulator<T>>
void apply_to(const T* x, T* y, const Shape& shape, const Region& region, const ForwardCoefficients<A>& k) {
  if (plan::by_rows(shape)) {
    apply_by_rows<Full>(x, y, rows_of<T>(shape, region), region, k);
  } else {
    apply_by_runs<Full>(x, y, shape, region, k);
  }
}

template <class T, class A = Accumulator<T>>
void apply(const T* x, T* y, const Shape& shape, const Region& region, const ForwardCoefficients<A>& k, bool stream) {
  if (stream && may_stream(y, shape, region)) {
    apply_to<Stream>(x, y, shape, region, k);
    end_stream();
  } else {
    apply_to<All>(x, y, shape, region, k);
  }
}

// ---- backward_reduce: sums of dy and of dy * xhat, per channel ----

template <class T, class A = Accumulator<T>>
void backward_reduce_by_runs(const T* dy, const T* x, const Shape& shape, const Region& region, const A* mean,
                             const A* invstd, double* sum_dy, double* sum_dy_xhat) {
  RunSums<T> accumulators;
  accumulators.run(shape, region, sum_dy, sum_dy_xhat,
                   [&](int64_t c, int64_t element, auto side, int64_t length, Vec<A>& first, Vec<A>& second) {
                     const Pack<T> mu = broadcast<T>(mean[c]);
                     const Pack<T> scale = broadcast<T>(invstd[c]);
                     Pack<T> s[kSlots<T>] = {};
                     Pack<T> q[kSlots<T>] = {};
                     for_packs<T>(length, [&](int64_t i, int slot, auto lanes) {
                       for (int r = 0; r < side.count; ++r) {
                         const int64_t at = element + r * side.apart + i;
                         const Pack<T> g = load(dy + at, lanes, Pack<T>{});
                         const Pack<T> xhat = (load(x + at, lanes, mu) - mu) * scale;
                         s[(slot + r) % kSlots<T>] += g;
                         q[(slot + r) % kSlots<T>] += g * xhat;
                       }
                     });
                     first += join<T>(s);
                     second += join<T>(q);
                   });
}

template <class T, class A = Accumulator<T>>
void backward_reduce_by_rows(const T* dy, const T* x, const Shape& shape, const Region& region, const A* mean,
                             const A* invstd, double* sum_dy, double* sum_dy_xhat) {
  const Rows rows = rows_of<T>(shape, region);
  Columns<T> means;
  Columns<T> invstds;
  ColumnSums<T> first(rows, sum_dy);
  ColumnSums<T> second(rows, sum_dy_xhat);
  means.expand(rows, mean);
  invstds.expand(rows, invstd);
  for_row_blocks<plan::kSideBySide>(
      rows, ColumnSums<T>::kBlockRows,
      [&](int64_t element, auto side, int64_t columns) {
        for_packs<T>(columns, [&](int64_t j, int, auto lanes) {
          const Pack<T> mu = means.at(j);
          const Pack<T> scale = invstds.at(j);
          Pack<T> s{};
          Pack<T> q{};
          for (int r = 0; r < side.count; ++r) {
            const int64_t i = element + r * side.apart + j;
            const Pack<T> g = load(dy + i, lanes, Pack<T>{});
            s += g;
            q += g * ((load(x + i, lanes, mu) - mu) * scale);
          }
          first.add(j, s);
          second.add(j, q);
        });
      },
      [&] {
        first.flush(rows);
        second.flush(rows);
      });
}

template <class T, class A = Accumulator<T>>
void backward_reduce(const T* dy, const T* x, const Shape& shape, const Region& region, const A* mean, const A* invstd,
                     double* sum_dy, double* sum_dy_xhat) {
  const auto phase = plan::by_rows(shape) ? backward_reduce_by_rows<T> : backward_reduce_by_runs<T>;
  const int64_t c0 = region.c0;
  phase(dy, x, shape, region, mean + c0, invstd + c0, sum_dy + c0, sum_dy_xhat + c0);
}

// ---- backward_apply: dx = dy * dy_scale + (x - mean) * x_scale + shift, or dy * dy_scale alone ----

template <class Full, class T, class A = Accumulator<T>>
void backward_apply_by_runs(const T* dy, const T* x, T* dx, const Shape& shape, const Region& region,
                            const BackwardCoefficients<A>& k) {
  for_all_stretches<T, kTogether<T, Full>>(shape, region, [&](int64_t c, int64_t element, auto side, int64_t length) {
    const int64_t ahead = head<Full>(dx + element);
    const Broadcast<T, side.count> dy_scale(k.dy_scale, c, side);
    if (!k.x_scale) {
      for_packs<T, Full>(ahead, length, [&](int64_t i, int, auto lanes) {
        map_packs<T>(dx + element + i, side, lanes, [&](int r, int64_t ahead) {
          return load(dy + element + i + ahead, lanes, Pack<T>{}) * dy_scale[r];
        });
      });
      return;
    }
    const Broadcast<T, side.count> mean(k.mean, c, side);
    const Broadcast<T, side.count> x_scale(k.x_scale, c, side);
    const Broadcast<T, side.count> shift(k.shift, c, side);
    for_packs<T, Full>(ahead, length, [&](int64_t i, int, auto lanes) {
      map_packs<T>(dx + element + i, side, lanes, [&](int r, int64_t ahead) {
        const int64_t at = element + i + ahead;
        const Pack<T> d = load(x + at, lanes, mean[r]) - mean[r];
        return load(dy + at, lanes, Pack<T>{}) * dy_scale[r] + (d * x_scale[r] + shift[r]);
      });
    });
  });
}

template <class Full, class T, class A = Accumulator<T>>
void backward_apply_by_rows(const T* dy, const T* x, T* dx, const Rows& rows, const Region& region,
                            const BackwardCoefficients<A>& k) {
  Columns<T> means;
  Columns<T> dy_scales;
  Columns<T> x_scales;
  Columns<T> shifts;
  means.expand(rows, k.mean + region.c0);
  dy_scales.expand(rows, k.dy_scale + region.c0);
  x_scales.expand(rows, k.x_scale + region.c0);
  shifts.expand(rows, k.shift + region.c0);
  for_rows<kTogether<T, Full>>(rows, [&](int64_t element, auto side, int64_t columns) {
    for_packs<T, Full>(0, columns, [&](int64_t j, int, auto lanes) {
      const Pack<T> mean = means.at(j);
      const Pack<T> dy_scale = dy_scales.at(j);
      const Pack<T> x_scale = x_scales.at(j);
      const Pack<T> shift = shifts.at(j);
      map_packs<T>(dx + element + j, side, lanes, [&](int, int64_t ahead) {
        const int64_t i = element + j + ahead;
        const Pack<T> d = load(x + i, lanes, mean) - mean;
        return load(dy + i, lanes, Pack<T>{}) * dy_scale + (d * x_scale + shift);
      });
    });
  });
}

template <class Full, class T, class A = Accumulator<T>>
void scale_by_rows(const T* dy, T* dx, const Rows& rows, const Region& region, const BackwardCoefficients<A>& k) {
  Columns<T> dy_scales;
  dy_scales.expand(rows, k.dy_scale + region.c0);
  for_rows<kTogether<T, Full>>(rows, [&](int64_t element, auto side, int64_t columns) {
    for_packs<T, Full>(0, columns, [&](int64_t j, int, auto lanes) {
      const Pack<T> dy_scale = dy_scales.at(j);
      map_packs<T>(dx + element + j, side, lanes,
                   [&](int, int64_t ahead) { return load(dy + element + j + ahead, lanes, Pack<T>{}) * dy_scale; });
    });
  });
}

template <class Full, class T, class A = Accumulator<T>>
void backward_apply_to(const T* dy, const T* x, T* dx, const Shape& shape, const Region& region,
                       const BackwardCoefficients<A>& k) {
  if (!plan::by_rows(shape)) {
    backward_apply_by_runs<Full>(dy, x, dx, shape, region, k);
    return;
  }
  const Rows rows = rows_of<T>(shape, region);
  if (k.x_scale) {
    backward_apply_by_rows<Full>(dy, x, dx, rows, region, k);
  } else {
    scale_by_rows<Full>(dy, dx, rows, region, k);
  }
}

template <class T, class A = Accumulator<T>>
void backward_apply(const T* dy, const T* x, T* dx, const Shape& shape, const Region& region,
                    const BackwardCoefficients<A>& k, bool stream) {
  if (stream && may_stream(dx, shape, region)) {
    backward_apply_to<Stream>(dy, x, dx, shape, region, k);
    end_stream();
  } else {
    backward_apply_to<All>(dy, x, dx, shape, region, k);
  }
}

template <class T>
constexpr Kernels<T> kernels_of() {
  using A = Accumulator<T>;
  return {&stats<T>,           &finish_forward<A>,  &finish_given<A>,  &apply<T>,
          &backward_reduce<T>, &finish_backward<A>, &backward_apply<T>};
}

constexpr KernelTable make_table() {
  return {&merge_moments,       &add, kernels_of<double>(), kernels_of<float>(), kernels_of<bfloat16>(),
          kernels_of<float16>()};
}

}  // namespace
}  // namespace my_ops::cpu
