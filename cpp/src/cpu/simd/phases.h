// The phases on a region, for one instruction set. Each phase is written for both ways of walking: by runs and by rows.
#pragma once

#include <type_traits>

#include "cpu/simd/channels.h"
#include "cpu/simd/epilogues.h"
#include "cpu/simd/moments.h"
#include "cpu/simd/rows.h"
#include "cpu/simd/runs.h"

namespace my_ops::cpu {
namespace {

// ---- stats: sums of x - pivot and of its square, per channel ----

template <class Ahead, class T, class A = Accumulator<T>>
void stats_by_runs(const T* x, const Shape& shape, const Region& region, const A* pivot, ShiftedSums sums) {
  RunSums<T> accumulators;
  accumulators.run(shape, region, sums.first, sums.second,
                   [&](int64_t c, int64_t element, auto side, int64_t length, Vec<A>& first, Vec<A>& second) {
                     const Pack<T> k = broadcast<T>(pivot[c]);
                     Pack<T> s[kSlots<T>] = {};
                     Pack<T> q[kSlots<T>] = {};
                     for_packs<T>(length, [&](int64_t i, int slot, auto lanes) {
                       for (int r = 0; r < side.count; ++r) {
                         const Pack<T> d = load_ahead<Ahead>(x + element + r * side.apart + i, lanes, k) - k;
                         s[(slot + r) % kSlots<T>] += d;
                         q[(slot + r) % kSlots<T>] += d * d;
                       }
                     });
                     first += join<T>(s);
                     second += join<T>(q);
                   });
}

template <class Ahead, class T, class A = Accumulator<T>>
void stats_by_rows(const T* x, const Shape& shape, const Region& region, const A* pivot, ShiftedSums sums) {
  const Rows rows = rows_of<T>(shape, region);
  Columns<T> pivots;
  ColumnSums<T> first(rows, sums.first);
  ColumnSums<T> second(rows, sums.second);
  pivots.expand(rows, pivot);
  for_row_blocks<plan::kSideBySide>(
      rows, ColumnSums<T>::kBlockRows,
      [&] {
        first.begin(rows);
        second.begin(rows);
      },
      [&](int64_t element, auto side, int64_t columns) {
        for_column_packs<T, All, kSlots<T>>(rows, columns, [&](auto packs) {
          const Pack<T> k = pivots.at(packs.column);
          Pack<T> s[packs.slots] = {};
          Pack<T> q[packs.slots] = {};
          packs.each([&](int64_t j, auto lanes) {
            for (int r = 0; r < side.count; ++r) {
              const Pack<T> d = load_ahead<Ahead>(x + element + r * side.apart + j, lanes, k) - k;
              s[r % packs.slots] += d;
              q[r % packs.slots] += d * d;
            }
          });
          first.add(packs.column, added(s));
          second.add(packs.column, added(q));
        });
      },
      [&] {
        first.flush(rows);
        second.flush(rows);
      });
}

template <class T, class A = Accumulator<T>>
void shifted_sums(const T* x, const Shape& shape, const Region& region, const A* pivot, ShiftedSums sums) {
  with_ahead<T>(shape, [&](auto ahead) {
    using Ahead = decltype(ahead);
    const auto phase = plan::by_rows(shape) ? stats_by_rows<Ahead, T> : stats_by_runs<Ahead, T>;
    phase(x, shape, region, pivot, sums);
  });
}

/// Reads the inaccurate channels again: first with their mean as the pivot; in double what then still has no finite M2,
/// what has an outlier (beside its square those of the other values are rounded, all in the same direction), and all of
/// float64, which has no wider type to sum in. By rows, all channels of the region are read again, as they share the
/// lines of memory.
template <class T, class A = Accumulator<T>>
__attribute__((noinline)) void stats_again(const T* x, const Shape& shape, const Region& region, A* pivot,
                                           ShiftedSums sums, double* mean, double* m2) {
  const auto n = static_cast<double>(region.e - region.b);
  const int64_t channels = region.c1 - region.c0;
  const auto channel = [&](int64_t i) { return Region{region.c0 + i, region.c0 + i + 1, region.b, region.e}; };
  bool again[plan::kMaxColumns];
  bool outlier[plan::kMaxColumns];
  for (int64_t i = 0; i < channels; ++i) {
    again[i] = !is_accurate(sums.first[i], n, m2[i]);
    outlier[i] = pivot_is_outlier(sums.first[i], n, m2[i]);
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
    const bool better = wider && !outlier[i] &&
                        moments_of(channel(i), pivot + i, {sums.first + i, sums.second + i}, mean + i, m2 + i) == 0;
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

// ---- apply: y = epilogue of (x - center) * scale + shift ----

/// The elements of a run before whole vectors can be stored the Full way.
template <class Full, class T>
MY_OPS_INLINE int64_t head(const T* out) {
  return std::is_same_v<Full, Stream> ? unaligned(out) : 0;
}

/// Runs align themselves; rows are streamed if all of them start aligned.
template <class T>
MY_OPS_INLINE bool may_stream(const T* out, const Shape& shape, const Region& region) {
  if (!plan::by_rows(shape)) return true;
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

template <class Full, class T, class E, class A = Accumulator<T>>
void apply_by_runs(const T* x, T* y, const Shape& shape, const Region& region, const ForwardCoefficients<A>& k,
                   E epilogue) {
  for_all_stretches<T, kStretchesOf<T, Full, E>>(
      shape, region, [&](int64_t c, int64_t element, auto side, int64_t length) {
        const Broadcast<T, side.count> center(k.center, c, side);
        const Broadcast<T, side.count> scale(k.scale, c, side);
        const Broadcast<T, side.count> shift(k.shift, c, side);
        for_packs<T, Full, kUnrolled<T, E>>(head<Full>(y + element), length, [&](int64_t i, int, auto lanes) {
          map_packs<T>(y + element + i, side, lanes, [&](int r, int64_t ahead) {
            const int64_t at = element + i + ahead;
            const Pack<T> z = (load_ahead(x + at, lanes, center[r]) - center[r]) * scale[r] + shift[r];
            return epilogue.output(z, at, lanes);
          });
        });
      });
}

template <class Full, class T, class E, class A = Accumulator<T>>
void apply_by_rows(const T* x, T* y, const Rows& rows, const Region& region, const ForwardCoefficients<A>& k,
                   E epilogue) {
  Columns<T> centers;
  Columns<T> scales;
  Columns<T> shifts;
  centers.expand(rows, k.center + region.c0);
  scales.expand(rows, k.scale + region.c0);
  shifts.expand(rows, k.shift + region.c0);
  for_rows<kStretchesOf<T, Full, E>>(rows, [&](int64_t element, auto side, int64_t columns) {
    for_column_packs<T, Full, kUnrolled<T, E>>(rows, columns, [&](auto packs) {
      const Pack<T> center = centers.at(packs.column);
      const Pack<T> scale = scales.at(packs.column);
      const Pack<T> shift = shifts.at(packs.column);
      packs.each([&](int64_t j, auto lanes) {
        map_packs<T>(y + element + j, side, lanes, [&](int, int64_t ahead) {
          const int64_t i = element + j + ahead;
          return epilogue.output((load_ahead(x + i, lanes, center) - center) * scale + shift, i, lanes);
        });
      });
    });
  });
}

template <class Full, class T, class E, class A = Accumulator<T>>
void apply_to(const T* x, T* y, const Shape& shape, const Region& region, const ForwardCoefficients<A>& k, E epilogue) {
  if (plan::by_rows(shape)) {
    apply_by_rows<Full>(x, y, rows_of<T>(shape, region), region, k, epilogue);
  } else {
    apply_by_runs<Full>(x, y, shape, region, k, epilogue);
  }
}

template <class T, class E, class A = Accumulator<T>>
void apply_epilogue(const T* x, T* y, const Shape& shape, const Region& region, const ForwardCoefficients<A>& k,
                    bool stream, E epilogue) {
  if (stream && may_stream(y, shape, region)) {
    apply_to<Stream>(x, y, shape, region, k, epilogue);
    end_stream();
  } else {
    apply_to<All>(x, y, shape, region, k, epilogue);
  }
}

template <class T, class A = Accumulator<T>>
void apply(const T* x, T* y, const Shape& shape, const Region& region, const ForwardCoefficients<A>& k, bool stream) {
  apply_epilogue(x, y, shape, region, k, stream, Plain<T>{});
}

template <class T, class A = Accumulator<T>>
void act_apply(const T* x, T* y, const Shape& shape, const Region& region, const ForwardCoefficients<A>& k,
               const Epilogue<T>& epilogue, bool stream) {
  with_epilogue(epilogue, [&](auto e) { apply_epilogue(x, y, shape, region, k, stream, e); });
}

// ---- backward_reduce: sums of dz and of dz * xhat, per channel; dz is what the epilogue makes of dy ----

template <class Ahead, class T, class E, class A = Accumulator<T>>
void backward_reduce_by_runs(const T* dy, const T* x, const Shape& shape, const Region& region, const A* mean,
                             const A* invstd, const AffineOfZ<A>& affine_of_z, double* sum_dz, double* sum_dz_xhat,
                             E epilogue) {
  RunSums<T, kStretches<E>> accumulators;
  accumulators.run(shape, region, sum_dz + region.c0, sum_dz_xhat + region.c0,
                   [&](int64_t i, int64_t element, auto side, int64_t length, Vec<A>& first, Vec<A>& second) {
                     const int64_t c = region.c0 + i;
                     const Pack<T> mu = broadcast<T>(mean[c]);
                     const Pack<T> scale = broadcast<T>(invstd[c]);
                     const ZOfStretches<T, E, 1> z(affine_of_z, mean, c, SideBySide<1>{0, 0});
                     Pack<T> s[kSlots<T>] = {};
                     Pack<T> q[kSlots<T>] = {};
                     for_packs<T, All, kUnrolled<T, E>>(0, length, [&](int64_t i, int slot, auto lanes) {
                       for (int r = 0; r < side.count; ++r) {
                         const int64_t at = element + r * side.apart + i;
                         const Pack<T> d = load_ahead<Ahead>(x + at, lanes, mu) - mu;
                         const Pack<T> g = epilogue.gradient(
                             load_ahead<Ahead>(dy + at, lanes, Pack<T>{}), [&] { return z(d, 0); }, at, lanes);
                         epilogue.keep(g, at, lanes);
                         s[(slot + r) % kSlots<T>] += g;
                         q[(slot + r) % kSlots<T>] += g * (d * scale);
                       }
                     });
                     first += join<T>(s);
                     second += join<T>(q);
                   });
}

template <class Ahead, class T, class E, class A = Accumulator<T>>
void backward_reduce_by_rows(const T* dy, const T* x, const Shape& shape, const Region& region, const A* mean,
                             const A* invstd, const AffineOfZ<A>& affine_of_z, double* sum_dz, double* sum_dz_xhat,
                             E epilogue) {
  const Rows rows = rows_of<T>(shape, region);
  Columns<T> means;
  Columns<T> invstds;
  ColumnSums<T> first(rows, sum_dz + region.c0);
  ColumnSums<T> second(rows, sum_dz_xhat + region.c0);
  means.expand(rows, mean + region.c0);
  invstds.expand(rows, invstd + region.c0);
  const ZOfColumns<T, E> z_of_columns(affine_of_z, rows, region);
  for_row_blocks<kStretches<E>>(
      rows, ColumnSums<T>::kBlockRows,
      [&] {
        first.begin(rows);
        second.begin(rows);
      },
      [&](int64_t element, auto side, int64_t columns) {
        for_column_packs<T, All, kUnrolled<T, E>>(rows, columns, [&](auto packs) {
          const Pack<T> mu = means.at(packs.column);
          const Pack<T> scale = invstds.at(packs.column);
          const auto z = z_of_columns.at(packs.column);
          Pack<T> s[packs.slots] = {};
          Pack<T> q[packs.slots] = {};
          packs.each([&](int64_t j, auto lanes) {
            for (int r = 0; r < side.count; ++r) {
              const int64_t i = element + r * side.apart + j;
              const Pack<T> d = load_ahead<Ahead>(x + i, lanes, mu) - mu;
              const Pack<T> g =
                  epilogue.gradient(load_ahead<Ahead>(dy + i, lanes, Pack<T>{}), [&] { return z(d); }, i, lanes);
              epilogue.keep(g, i, lanes);
              s[r % packs.slots] += g;
              q[r % packs.slots] += g * (d * scale);
            }
          });
          first.add(packs.column, added(s));
          second.add(packs.column, added(q));
        });
      },
      [&] {
        first.flush(rows);
        second.flush(rows);
      });
}

template <class T, class E, class A = Accumulator<T>>
void backward_reduce_epilogue(const T* dy, const T* x, const Shape& shape, const Region& region, const A* mean,
                              const A* invstd, const AffineOfZ<A>& z, double* sum_dz, double* sum_dz_xhat, E epilogue) {
  with_ahead<T>(shape, [&](auto ahead) {
    using Ahead = decltype(ahead);
    const auto phase =
        plan::by_rows(shape) ? backward_reduce_by_rows<Ahead, T, E> : backward_reduce_by_runs<Ahead, T, E>;
    phase(dy, x, shape, region, mean, invstd, z, sum_dz, sum_dz_xhat, epilogue);
  });
}

template <class T, class A = Accumulator<T>>
void backward_reduce(const T* dy, const T* x, const Shape& shape, const Region& region, const A* mean, const A* invstd,
                     double* sum_dy, double* sum_dy_xhat) {
  backward_reduce_epilogue(dy, x, shape, region, mean, invstd, AffineOfZ<A>{}, sum_dy, sum_dy_xhat, Plain<T>{});
}

template <class T, class A = Accumulator<T>>
void act_backward_reduce(const T* dy, const T* x, const Shape& shape, const Region& region, const A* mean,
                         const A* invstd, const Epilogue<T>& epilogue, double* sum_dz, double* sum_dz_xhat) {
  with_epilogue(epilogue, [&](auto e) {
    backward_reduce_epilogue(dy, x, shape, region, mean, invstd, epilogue.z, sum_dz, sum_dz_xhat, e);
  });
}

// ---- backward_apply: dx = (dz + (x - mean) * x_scale) * dy_scale + shift, or dz * dy_scale alone ----

template <class Full, class T, class E, class A = Accumulator<T>>
void backward_apply_by_runs(const T* dy, const T* x, T* dx, const Shape& shape, const Region& region,
                            const BackwardCoefficients<A>& k, const AffineOfZ<A>& affine_of_z, E epilogue) {
  for_all_stretches<T, kStretchesOf<T, Full, E>>(
      shape, region, [&](int64_t c, int64_t element, auto side, int64_t length) {
        const int64_t ahead = head<Full>(dx + element);
        const Broadcast<T, side.count> dy_scale(k.dy_scale, c, side);
        const ZOfStretches<T, E, side.count> z(affine_of_z, k.mean, c, side);
        if (!k.x_scale) {
          for_packs<T, Full, kUnrolled<T, E>>(ahead, length, [&](int64_t i, int, auto lanes) {
            map_packs<T>(dx + element + i, side, lanes, [&](int r, int64_t ahead) {
              const int64_t at = element + i + ahead;
              const auto z_here = [&] { return z.of_x(load_ahead(x + at, lanes, Pack<T>{}), r); };
              return epilogue.gradient(load_ahead(dy + at, lanes, Pack<T>{}), z_here, at, lanes) * dy_scale[r];
            });
          });
          return;
        }
        const Broadcast<T, side.count> mean(k.mean, c, side);
        const Broadcast<T, side.count> x_scale(k.x_scale, c, side);
        const Broadcast<T, side.count> shift(k.shift, c, side);
        for_packs<T, Full, kUnrolled<T, E>>(ahead, length, [&](int64_t i, int, auto lanes) {
          map_packs<T>(dx + element + i, side, lanes, [&](int r, int64_t ahead) {
            const int64_t at = element + i + ahead;
            const Pack<T> d = load_ahead(x + at, lanes, mean[r]) - mean[r];
            const Pack<T> g =
                epilogue.gradient(load_ahead(dy + at, lanes, Pack<T>{}), [&] { return z(d, r); }, at, lanes);
            return (g + d * x_scale[r]) * dy_scale[r] + shift[r];
          });
        });
      });
}

template <class Full, class T, class E, class A = Accumulator<T>>
void backward_apply_by_rows(const T* dy, const T* x, T* dx, const Rows& rows, const Region& region,
                            const BackwardCoefficients<A>& k, const AffineOfZ<A>& affine_of_z, E epilogue) {
  using Ahead = AheadOfTwo<Full>;
  Columns<T> means;
  Columns<T> dy_scales;
  Columns<T> x_scales;
  Columns<T> shifts;
  means.expand(rows, k.mean + region.c0);
  dy_scales.expand(rows, k.dy_scale + region.c0);
  x_scales.expand(rows, k.x_scale + region.c0);
  shifts.expand(rows, k.shift + region.c0);
  const ZOfColumns<T, E> z_of_columns(affine_of_z, rows, region);
  for_rows<kStretchesOf<T, Full, E>>(rows, [&](int64_t element, auto side, int64_t columns) {
    for_column_packs<T, Full, kUnrolled<T, E>>(rows, columns, [&](auto packs) {
      const Pack<T> mean = means.at(packs.column);
      const Pack<T> dy_scale = dy_scales.at(packs.column);
      const Pack<T> x_scale = x_scales.at(packs.column);
      const Pack<T> shift = shifts.at(packs.column);
      const auto z = z_of_columns.at(packs.column);
      packs.each([&](int64_t j, auto lanes) {
        map_packs<T>(dx + element + j, side, lanes, [&](int, int64_t ahead) {
          const int64_t i = element + j + ahead;
          const Pack<T> d = load_ahead<Ahead>(x + i, lanes, mean) - mean;
          const Pack<T> g =
              epilogue.gradient(load_ahead<Ahead>(dy + i, lanes, Pack<T>{}), [&] { return z(d); }, i, lanes);
          return (g + d * x_scale) * dy_scale + shift;
        });
      });
    });
  });
}

template <class Full, class T, class E, class A = Accumulator<T>>
void scale_by_rows(const T* dy, const T* x, T* dx, const Rows& rows, const Region& region,
                   const BackwardCoefficients<A>& k, const AffineOfZ<A>& affine_of_z, E epilogue) {
  Columns<T> means;
  Columns<T> dy_scales;
  if constexpr (E::kFromZ) means.expand(rows, k.mean + region.c0);
  dy_scales.expand(rows, k.dy_scale + region.c0);
  const ZOfColumns<T, E> z_of_columns(affine_of_z, rows, region);
  for_rows<kStretchesOf<T, Full, E>>(rows, [&](int64_t element, auto side, int64_t columns) {
    for_column_packs<T, Full, kUnrolled<T, E>>(rows, columns, [&](auto packs) {
      const Pack<T> dy_scale = dy_scales.at(packs.column);
      const auto z = z_of_columns.at(packs.column);
      packs.each([&](int64_t j, auto lanes) {
        map_packs<T>(dx + element + j, side, lanes, [&](int, int64_t ahead) {
          const int64_t i = element + j + ahead;
          const auto z_here = [&] {
            const Pack<T> mean = means.at(packs.column);
            return z(load_ahead(x + i, lanes, mean) - mean);
          };
          return epilogue.gradient(load_ahead(dy + i, lanes, Pack<T>{}), z_here, i, lanes) * dy_scale;
        });
      });
    });
  });
}

template <class Full, class T, class E, class A = Accumulator<T>>
void backward_apply_to(const T* dy, const T* x, T* dx, const Shape& shape, const Region& region,
                       const BackwardCoefficients<A>& k, const AffineOfZ<A>& z, E epilogue) {
  if (!plan::by_rows(shape)) {
    backward_apply_by_runs<Full>(dy, x, dx, shape, region, k, z, epilogue);
    return;
  }
  const Rows rows = rows_of<T>(shape, region);
  if (k.x_scale) {
    backward_apply_by_rows<Full>(dy, x, dx, rows, region, k, z, epilogue);
  } else {
    scale_by_rows<Full>(dy, x, dx, rows, region, k, z, epilogue);
  }
}

template <class T, class E, class A = Accumulator<T>>
void backward_apply_epilogue(const T* dy, const T* x, T* dx, const Shape& shape, const Region& region,
                             const BackwardCoefficients<A>& k, const AffineOfZ<A>& z, bool stream, E epilogue) {
  if (stream && may_stream(dx, shape, region)) {
    backward_apply_to<Stream>(dy, x, dx, shape, region, k, z, epilogue);
    end_stream();
  } else {
    backward_apply_to<All>(dy, x, dx, shape, region, k, z, epilogue);
  }
}

template <class T, class A = Accumulator<T>>
void backward_apply(const T* dy, const T* x, T* dx, const Shape& shape, const Region& region,
                    const BackwardCoefficients<A>& k, bool stream) {
  backward_apply_epilogue(dy, x, dx, shape, region, k, AffineOfZ<A>{}, stream, Plain<T>{});
}

template <class T, class A = Accumulator<T>>
void act_backward_apply(const T* dy, const T* x, T* dx, const Shape& shape, const Region& region,
                        const BackwardCoefficients<A>& k, const Epilogue<T>& epilogue, bool stream) {
  with_activation(epilogue,
                  [&](auto e) { backward_apply_epilogue(dy, x, dx, shape, region, k, epilogue.z, stream, e); });
}

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
  return {&merge_moments,       &add, kernels_of<double>(), kernels_of<float>(), kernels_of<bfloat16>(),
          kernels_of<float16>()};
}

}  // namespace
}  // namespace my_ops::cpu
