// The phases on a region, for one instruction set. Each phase is written for both ways of walking: by runs and by rows.
#pragma once

#include "cpu/simd/moments.h"
#include "cpu/simd/rows.h"
#include "cpu/simd/runs.h"

namespace my_ops::cpu {
namespace {

// ---- stats: sums of x - pivot and of its square, per channel ----

template <class T, class A = Accumulator<T>>
void stats_by_runs(const T* x, const Shape& shape, const Region& region, const A* pivot, ShiftedSums sums) {
  RunSums<A> accumulators;
  accumulators.run(shape, region, sums.first, sums.second,
                   [&](int64_t c, int64_t element, int64_t length, Vec<A>& first, Vec<A>& second) {
                     const Vec<A> k = broadcast(pivot[c]);
                     Vec<A> s[4] = {first, {}, {}, {}};
                     Vec<A> q[4] = {second, {}, {}, {}};
                     for_vectors<A>(length, [&](int64_t i, int slot, auto lanes) {
                       const Vec<A> d = load(x + element + i, lanes, k) - k;
                       s[slot] += d;
                       q[slot] += d * d;
                     });
                     first = join<A>(s);
                     second = join<A>(q);
                   });
}

template <class T, class A = Accumulator<T>>
void stats_by_rows(const T* x, const Shape& shape, const Region& region, const A* pivot, ShiftedSums sums) {
  const Rows rows = rows_of(shape, region, kLanes<A>);
  Columns<A> pivots;
  ColumnSums<A> first;
  ColumnSums<A> second;
  pivots.expand(rows, pivot);
  first.clear(rows);
  second.clear(rows);
  for_rows(
      rows, ColumnSums<A>::kBlockRows,
      [&](int64_t element, auto count, int64_t columns) {
        for_vectors<A>(columns, [&](int64_t j, int, auto lanes) {
          const Vec<A> k = pivots.at(j);
          Vec<A> s{};
          Vec<A> q{};
          for (int r = 0; r < decltype(count)::value; ++r) {
            const Vec<A> d = load(x + element + r * rows.stride + j, lanes, k) - k;
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
  first.reduce(rows, sums.first);
  second.reduce(rows, sums.second);
}

template <class T, class A = Accumulator<T>>
void stats(const T* x, const Shape& shape, const Region& region, double* mean, double* m2) {
  A pivot[plan::kMaxColumns];
  double first[plan::kMaxColumns];
  double second[plan::kMaxColumns];
  choose_pivots(x, shape, region, pivot);
  if (plan::by_rows(shape)) {
    stats_by_rows(x, shape, region, pivot, {first, second});
  } else {
    stats_by_runs(x, shape, region, pivot, {first, second});
  }
  finish_moments(x, shape, region, pivot, {first, second}, mean, m2);
}

// ---- apply: y = (x - center) * scale + shift ----

template <class T, class A = Accumulator<T>>
void apply_by_runs(const T* x, T* y, const Shape& shape, const Region& region, const ForwardCoefficients<A>& k) {
  for_stretches(shape, region.c0, region.b, region.e, [&](int64_t first, int64_t length) {
    for (int64_t c = region.c0; c < region.c1; ++c) {
      const int64_t element = first + (c - region.c0) * shape.s;
      const Vec<A> center = broadcast(k.center[c]);
      const Vec<A> scale = broadcast(k.scale[c]);
      const Vec<A> shift = broadcast(k.shift[c]);
      for_vectors<A>(length, [&](int64_t i, int, auto lanes) {
        store(y + element + i, lanes, (load(x + element + i, lanes, center) - center) * scale + shift);
      });
    }
  });
}

template <class T, class A = Accumulator<T>>
void apply_by_rows(const T* x, T* y, const Shape& shape, const Region& region, const ForwardCoefficients<A>& k) {
  const Rows rows = rows_of(shape, region, kLanes<A>);
  Columns<A> centers;
  Columns<A> scales;
  Columns<A> shifts;
  centers.expand(rows, k.center + region.c0);
  scales.expand(rows, k.scale + region.c0);
  shifts.expand(rows, k.shift + region.c0);
  for_rows(
      rows, rows.count,
      [&](int64_t element, auto count, int64_t columns) {
        for_vectors<A>(columns, [&](int64_t j, int, auto lanes) {
          const Vec<A> center = centers.at(j);
          const Vec<A> scale = scales.at(j);
          const Vec<A> shift = shifts.at(j);
          for (int r = 0; r < decltype(count)::value; ++r) {
            const int64_t i = element + r * rows.stride + j;
            store(y + i, lanes, (load(x + i, lanes, center) - center) * scale + shift);
          }
        });
      },
      [] {});
}

template <class T, class A = Accumulator<T>>
void apply(const T* x, T* y, const Shape& shape, const Region& region, const ForwardCoefficients<A>& k) {
  plan::by_rows(shape) ? apply_by_rows(x, y, shape, region, k) : apply_by_runs(x, y, shape, region, k);
}

// ---- backward_reduce: sums of dy and of dy * xhat, per channel ----

template <class T, class A = Accumulator<T>>
void backward_reduce_by_runs(const T* dy, const T* x, const Shape& shape, const Region& region, const A* mean,
                             const A* invstd, double* sum_dy, double* sum_dy_xhat) {
  RunSums<A> accumulators;
  accumulators.run(shape, region, sum_dy, sum_dy_xhat,
                   [&](int64_t c, int64_t element, int64_t length, Vec<A>& first, Vec<A>& second) {
                     const Vec<A> mu = broadcast(mean[c]);
                     const Vec<A> r = broadcast(invstd[c]);
                     Vec<A> s[4] = {first, {}, {}, {}};
                     Vec<A> q[4] = {second, {}, {}, {}};
                     for_vectors<A>(length, [&](int64_t i, int slot, auto lanes) {
                       const Vec<A> g = load(dy + element + i, lanes, Vec<A>{});
                       const Vec<A> xhat = (load(x + element + i, lanes, mu) - mu) * r;
                       s[slot] += g;
                       q[slot] += g * xhat;
                     });
                     first = join<A>(s);
                     second = join<A>(q);
                   });
}

template <class T, class A = Accumulator<T>>
void backward_reduce_by_rows(const T* dy, const T* x, const Shape& shape, const Region& region, const A* mean,
                             const A* invstd, double* sum_dy, double* sum_dy_xhat) {
  const Rows rows = rows_of(shape, region, kLanes<A>);
  Columns<A> means;
  Columns<A> invstds;
  ColumnSums<A> first;
  ColumnSums<A> second;
  means.expand(rows, mean);
  invstds.expand(rows, invstd);
  first.clear(rows);
  second.clear(rows);
  for_rows(
      rows, ColumnSums<A>::kBlockRows,
      [&](int64_t element, auto count, int64_t columns) {
        for_vectors<A>(columns, [&](int64_t j, int, auto lanes) {
          const Vec<A> mu = means.at(j);
          const Vec<A> r = invstds.at(j);
          Vec<A> s{};
          Vec<A> q{};
          for (int row = 0; row < decltype(count)::value; ++row) {
            const int64_t i = element + row * rows.stride + j;
            const Vec<A> g = load(dy + i, lanes, Vec<A>{});
            s += g;
            q += g * ((load(x + i, lanes, mu) - mu) * r);
          }
          first.add(j, s);
          second.add(j, q);
        });
      },
      [&] {
        first.flush(rows);
        second.flush(rows);
      });
  first.reduce(rows, sum_dy);
  second.reduce(rows, sum_dy_xhat);
}

template <class T, class A = Accumulator<T>>
void backward_reduce(const T* dy, const T* x, const Shape& shape, const Region& region, const A* mean,
                     const A* invstd, double* sum_dy, double* sum_dy_xhat) {
  const auto phase = plan::by_rows(shape) ? backward_reduce_by_rows<T> : backward_reduce_by_runs<T>;
  const int64_t c0 = region.c0;
  phase(dy, x, shape, region, mean + c0, invstd + c0, sum_dy + c0, sum_dy_xhat + c0);
}

// ---- backward_apply: dx = dy * dy_scale + (x - mean) * x_scale + shift, or dy * dy_scale alone ----

template <class T, class A = Accumulator<T>>
void backward_apply_by_runs(const T* dy, const T* x, T* dx, const Shape& shape, const Region& region,
                            const BackwardCoefficients<A>& k) {
  for_stretches(shape, region.c0, region.b, region.e, [&](int64_t first, int64_t length) {
    for (int64_t c = region.c0; c < region.c1; ++c) {
      const int64_t element = first + (c - region.c0) * shape.s;
      const Vec<A> dy_scale = broadcast(k.dy_scale[c]);
      if (!k.x_scale) {
        for_vectors<A>(length, [&](int64_t i, int, auto lanes) {
          store(dx + element + i, lanes, load(dy + element + i, lanes, Vec<A>{}) * dy_scale);
        });
        continue;
      }
      const Vec<A> mean = broadcast(k.mean[c]);
      const Vec<A> x_scale = broadcast(k.x_scale[c]);
      const Vec<A> shift = broadcast(k.shift[c]);
      for_vectors<A>(length, [&](int64_t i, int, auto lanes) {
        const Vec<A> g = load(dy + element + i, lanes, Vec<A>{});
        const Vec<A> d = load(x + element + i, lanes, mean) - mean;
        store(dx + element + i, lanes, g * dy_scale + (d * x_scale + shift));
      });
    }
  });
}

template <class T, class A = Accumulator<T>>
void backward_apply_by_rows(const T* dy, const T* x, T* dx, const Shape& shape, const Region& region,
                            const BackwardCoefficients<A>& k) {
  const Rows rows = rows_of(shape, region, kLanes<A>);
  Columns<A> dy_scales;
  dy_scales.expand(rows, k.dy_scale + region.c0);
  if (!k.x_scale) {
    for_rows(
        rows, rows.count,
        [&](int64_t element, auto count, int64_t columns) {
          for_vectors<A>(columns, [&](int64_t j, int, auto lanes) {
            const Vec<A> dy_scale = dy_scales.at(j);
            for (int r = 0; r < decltype(count)::value; ++r) {
              const int64_t i = element + r * rows.stride + j;
              store(dx + i, lanes, load(dy + i, lanes, Vec<A>{}) * dy_scale);
            }
          });
        },
        [] {});
    return;
  }
  Columns<A> means;
  Columns<A> x_scales;
  Columns<A> shifts;
  means.expand(rows, k.mean + region.c0);
  x_scales.expand(rows, k.x_scale + region.c0);
  shifts.expand(rows, k.shift + region.c0);
  for_rows(
      rows, rows.count,
      [&](int64_t element, auto count, int64_t columns) {
        for_vectors<A>(columns, [&](int64_t j, int, auto lanes) {
          const Vec<A> mean = means.at(j);
          const Vec<A> dy_scale = dy_scales.at(j);
          const Vec<A> x_scale = x_scales.at(j);
          const Vec<A> shift = shifts.at(j);
          for (int r = 0; r < decltype(count)::value; ++r) {
            const int64_t i = element + r * rows.stride + j;
            const Vec<A> g = load(dy + i, lanes, Vec<A>{});
            const Vec<A> d = load(x + i, lanes, mean) - mean;
            store(dx + i, lanes, g * dy_scale + (d * x_scale + shift));
          }
        });
      },
      [] {});
}

template <class T, class A = Accumulator<T>>
void backward_apply(const T* dy, const T* x, T* dx, const Shape& shape, const Region& region,
                    const BackwardCoefficients<A>& k) {
  const auto phase = plan::by_rows(shape) ? backward_apply_by_rows<T> : backward_apply_by_runs<T>;
  phase(dy, x, dx, shape, region, k);
}

template <class T>
constexpr Kernels<T> kernels_of() {
  return {&stats<T>, &apply<T>, &backward_reduce<T>, &backward_apply<T>};
}

constexpr KernelTable make_table() {
  return {kernels_of<double>(), kernels_of<float>(), kernels_of<bfloat16>(), kernels_of<float16>()};
}

}  // namespace
}  // namespace my_ops::cpu
