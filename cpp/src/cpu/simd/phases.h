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
  ColumnSums<A> first(rows, sums.first);
  ColumnSums<A> second(rows, sums.second);
  pivots.expand(rows, pivot);
  for_row_blocks(
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
    const A better = rounded_to_element<T>(static_cast<A>(mean[i]));
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
  A pivot[plan::kMaxColumns];
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

/// Runs align themselves; rows are streamed if all of them start aligned.
template <class T>
MY_OPS_INLINE bool may_stream(const T* out, const Shape& shape, const Region& region) {
  if (!plan::by_rows(shape)) return true;
  const Rows rows = rows_of(shape, region, kLanes<Accumulator<T>>);
  return unaligned(out + rows.offset) == 0 && rows.stride % kLanes<Accumulator<T>> == 0;
}

template <class Full, class T, class A = Accumulator<T>>
void apply_by_runs(const T* x, T* y, const Shape& shape, const Region& region, const ForwardCoefficients<A>& k) {
  for_stretches(shape, region.c0, region.b, region.e, [&](int64_t first, int64_t length) {
    for (int64_t c = region.c0; c < region.c1; ++c) {
      const T* in = x + first + (c - region.c0) * shape.s;
      T* out = y + (in - x);
      const Vec<A> center = broadcast(k.center[c]);
      const Vec<A> scale = broadcast(k.scale[c]);
      const Vec<A> shift = broadcast(k.shift[c]);
      for_vectors<A, Full>(head<Full>(out), length, [&](int64_t i, int, auto lanes) {
        store(out + i, lanes, (load(in + i, lanes, center) - center) * scale + shift);
      });
    }
  });
}

template <class Full, class T, class A = Accumulator<T>>
void apply_by_rows(const T* x, T* y, const Rows& rows, const Region& region, const ForwardCoefficients<A>& k) {
  Columns<A> centers;
  Columns<A> scales;
  Columns<A> shifts;
  centers.expand(rows, k.center + region.c0);
  scales.expand(rows, k.scale + region.c0);
  shifts.expand(rows, k.shift + region.c0);
  for_rows(rows, [&](int64_t element, int64_t columns) {
    const T* in = x + element;
    T* out = y + element;
    for_vectors<A, Full>(0, columns, [&](int64_t j, int, auto lanes) {
      const Vec<A> center = centers.at(j);
      store(out + j, lanes, (load(in + j, lanes, center) - center) * scales.at(j) + shifts.at(j));
    });
  });
}

template <class Full, class T, class A = Accumulator<T>>
void apply_to(const T* x, T* y, const Shape& shape, const Region& region, const ForwardCoefficients<A>& k) {
  if (plan::by_rows(shape)) {
    apply_by_rows<Full>(x, y, rows_of(shape, region, kLanes<A>), region, k);
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
  ColumnSums<A> first(rows, sum_dy);
  ColumnSums<A> second(rows, sum_dy_xhat);
  means.expand(rows, mean);
  invstds.expand(rows, invstd);
  for_row_blocks(
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
  for_stretches(shape, region.c0, region.b, region.e, [&](int64_t first, int64_t length) {
    for (int64_t c = region.c0; c < region.c1; ++c) {
      const int64_t element = first + (c - region.c0) * shape.s;
      const T* g = dy + element;
      T* out = dx + element;
      const Vec<A> dy_scale = broadcast(k.dy_scale[c]);
      if (!k.x_scale) {
        for_vectors<A, Full>(head<Full>(out), length, [&](int64_t i, int, auto lanes) {
          store(out + i, lanes, load(g + i, lanes, Vec<A>{}) * dy_scale);
        });
        continue;
      }
      const T* in = x + element;
      const Vec<A> mean = broadcast(k.mean[c]);
      const Vec<A> x_scale = broadcast(k.x_scale[c]);
      const Vec<A> shift = broadcast(k.shift[c]);
      for_vectors<A, Full>(head<Full>(out), length, [&](int64_t i, int, auto lanes) {
        const Vec<A> d = load(in + i, lanes, mean) - mean;
        store(out + i, lanes, load(g + i, lanes, Vec<A>{}) * dy_scale + (d * x_scale + shift));
      });
    }
  });
}

template <class Full, class T, class A = Accumulator<T>>
void backward_apply_by_rows(const T* dy, const T* x, T* dx, const Rows& rows, const Region& region,
                            const BackwardCoefficients<A>& k) {
  Columns<A> means;
  Columns<A> dy_scales;
  Columns<A> x_scales;
  Columns<A> shifts;
  means.expand(rows, k.mean + region.c0);
  dy_scales.expand(rows, k.dy_scale + region.c0);
  x_scales.expand(rows, k.x_scale + region.c0);
  shifts.expand(rows, k.shift + region.c0);
  for_rows(rows, [&](int64_t element, int64_t columns) {
    const T* g = dy + element;
    const T* in = x + element;
    T* out = dx + element;
    for_vectors<A, Full>(0, columns, [&](int64_t j, int, auto lanes) {
      const Vec<A> mean = means.at(j);
      const Vec<A> d = load(in + j, lanes, mean) - mean;
      store(out + j, lanes, load(g + j, lanes, Vec<A>{}) * dy_scales.at(j) + (d * x_scales.at(j) + shifts.at(j)));
    });
  });
}

template <class Full, class T, class A = Accumulator<T>>
void scale_by_rows(const T* dy, T* dx, const Rows& rows, const Region& region, const BackwardCoefficients<A>& k) {
  Columns<A> dy_scales;
  dy_scales.expand(rows, k.dy_scale + region.c0);
  for_rows(rows, [&](int64_t element, int64_t columns) {
    for_vectors<A, Full>(0, columns, [&](int64_t j, int, auto lanes) {
      store(dx + element + j, lanes, load(dy + element + j, lanes, Vec<A>{}) * dy_scales.at(j));
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
  const Rows rows = rows_of(shape, region, kLanes<A>);
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
  return {kernels_of<double>(), kernels_of<float>(), kernels_of<bfloat16>(), kernels_of<float16>()};
}

}  // namespace
}  // namespace my_ops::cpu
