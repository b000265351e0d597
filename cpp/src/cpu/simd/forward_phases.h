// The forward phases on a region. Each is written for both ways of walking, by runs and by rows; apply for a
// third, in memory order.
#pragma once

#include <type_traits>

#include "cpu/simd/epilogues.h"
#include "cpu/simd/maps.h"
#include "cpu/simd/moments.h"
#include "cpu/simd/ordered.h"
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
      rows, kBlockRows<plan::kSideBySide>,
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
void apply_in_order(const T* x, T* y, const Shape& shape, const Region& region, const ForwardCoefficients<A>& k,
                    E epilogue) {
  const A* const vectors[] = {k.center, k.scale, k.shift};
  for_packs_in_order<Full>(shape, region, y, vectors, [&](int64_t element, auto lanes, const auto& coefficients) {
    const auto& [center, scale, shift] = coefficients.of;
    map_packs<T>(y + element, SideBySide<1>{0, 0}, lanes, [&](int, int64_t) {
      return epilogue.output((load_ahead(x + element, lanes, center) - center) * scale + shift, element, lanes);
    });
  });
}

template <class Full, class T, class E, class A = Accumulator<T>>
void apply_to(const T* x, T* y, const Shape& shape, const Region& region, const ForwardCoefficients<A>& k, E epilogue) {
  if (plan::in_order(shape, region.c1 - region.c0, sizeof(T))) {
    apply_in_order<Full>(x, y, shape, region, k, epilogue);
  } else if (plan::by_rows(shape)) {
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

}  // namespace
}  // namespace my_ops::cpu
