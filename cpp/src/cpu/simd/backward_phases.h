// The backward phases on a region. Each is written for both ways of walking: by runs and by rows.
#pragma once

#include <type_traits>

#include "cpu/simd/epilogues.h"
#include "cpu/simd/maps.h"
#include "cpu/simd/rows.h"
#include "cpu/simd/runs.h"

namespace my_ops::cpu {
namespace {

// ---- backward_reduce: sums of dz, the epilogue's of dy, and of dz * xhat; dz * (x - mean) might overflow ----

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
                     const UOfStretches<T, E, 1> u(affine_of_z, mean, c, SideBySide<1>{0, 0});
                     Pack<T> s[kSlots<T>] = {};
                     Pack<T> q[kSlots<T>] = {};
                     for_packs<T, All, kUnrolled<T, E>>(0, length, [&](int64_t i, int slot, auto lanes) {
                       MY_OPS_UNROLLED for (int r = 0; r < side.count; ++r) {
                         const int64_t at = element + r * side.apart + i;
                         const Pack<T> v = load_ahead<Ahead>(x + at, lanes, mu);
                         const Pack<T> d = input_of<T>(epilogue, v) - mu;
                         const Pack<T> g = epilogue.gradient(
                             load_ahead<Ahead>(dy + at, lanes, Pack<T>{}), [&] { return u(v, d, 0); }, at, lanes);
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
  const UOfColumns<T, E> u_of_columns(affine_of_z, rows, region);
  for_row_blocks<kStretches<E>>(
      rows, kBlockRows<kStretches<E>>,
      [&] {
        first.begin(rows);
        second.begin(rows);
      },
      [&](int64_t element, auto side, int64_t columns) {
        for_column_packs<T, All, kUnrolled<T, E>>(rows, columns, [&](auto packs) {
          const Pack<T> mu = means.at(packs.column);
          const Pack<T> scale = invstds.at(packs.column);
          const auto u = u_of_columns.at(packs.column);
          Pack<T> s[packs.slots] = {};
          Pack<T> q[packs.slots] = {};
          packs.each([&](int64_t j, auto lanes) {
            MY_OPS_UNROLLED for (int r = 0; r < side.count; ++r) {
              const int64_t i = element + r * side.apart + j;
              const Pack<T> v = load_ahead<Ahead>(x + i, lanes, mu);
              const Pack<T> d = input_of<T>(epilogue, v) - mu;
              const Pack<T> g =
                  epilogue.gradient(load_ahead<Ahead>(dy + i, lanes, Pack<T>{}), [&] { return u(v, d); }, i, lanes);
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
  const auto use = [&](auto e) {
    backward_reduce_epilogue(dy, x, shape, region, mean, invstd, epilogue.z, sum_dz, sum_dz_xhat, e);
  };
  epilogue.of_output ? with_inverse(epilogue, use) : with_epilogue(epilogue, use);
}

// ---- backward_apply: dx = (dz + (x - mean) * x_scale) * dy_scale + shift, or dz * dy_scale alone ----

template <class Full, class T, class E, class A = Accumulator<T>>
void backward_apply_by_runs(const T* dy, const T* x, T* dx, const Shape& shape, const Region& region,
                            const BackwardCoefficients<A>& k, const AffineOfZ<A>& affine_of_z, E epilogue) {
  for_all_stretches<T, kStretchesOf<T, Full, E>>(
      shape, region, [&](int64_t c, int64_t element, auto side, int64_t length) {
        const int64_t ahead = head<Full>(dx + element);
        const Broadcast<T, side.count> dy_scale(k.dy_scale, c, side);
        const UOfStretches<T, E, side.count> u(affine_of_z, k.mean, c, side);
        if (!k.x_scale) {
          for_packs<T, Full, kUnrolled<T, E>>(ahead, length, [&](int64_t i, int, auto lanes) {
            map_packs<T>(dx + element + i, side, lanes, [&](int r, int64_t ahead) {
              const int64_t at = element + i + ahead;
              const auto u_here = [&] { return u(load_ahead(x + at, lanes, Pack<T>{}), r); };
              return epilogue.gradient(load_ahead(dy + at, lanes, Pack<T>{}), u_here, at, lanes) * dy_scale[r];
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
            const Pack<T> v = load_ahead(x + at, lanes, mean[r]);
            const Pack<T> d = input_of<T>(epilogue, v) - mean[r];
            const Pack<T> g =
                epilogue.gradient(load_ahead(dy + at, lanes, Pack<T>{}), [&] { return u(v, d, r); }, at, lanes);
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
  const UOfColumns<T, E> u_of_columns(affine_of_z, rows, region);
  for_rows<kStretchesOf<T, Full, E>>(rows, [&](int64_t element, auto side, int64_t columns) {
    for_column_packs<T, Full, kUnrolled<T, E>>(rows, columns, [&](auto packs) {
      const Pack<T> mean = means.at(packs.column);
      const Pack<T> dy_scale = dy_scales.at(packs.column);
      const Pack<T> x_scale = x_scales.at(packs.column);
      const Pack<T> shift = shifts.at(packs.column);
      const auto u = u_of_columns.at(packs.column);
      packs.each([&](int64_t j, auto lanes) {
        map_packs<T>(dx + element + j, side, lanes, [&](int, int64_t ahead) {
          const int64_t i = element + j + ahead;
          const Pack<T> v = load_ahead<Ahead>(x + i, lanes, mean);
          const Pack<T> d = input_of<T>(epilogue, v) - mean;
          const Pack<T> g =
              epilogue.gradient(load_ahead<Ahead>(dy + i, lanes, Pack<T>{}), [&] { return u(v, d); }, i, lanes);
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
  if constexpr (E::kGradientOf != GradientOf::dy) means.expand(rows, k.mean + region.c0);
  dy_scales.expand(rows, k.dy_scale + region.c0);
  const UOfColumns<T, E> u_of_columns(affine_of_z, rows, region);
  for_rows<kStretchesOf<T, Full, E>>(rows, [&](int64_t element, auto side, int64_t columns) {
    for_column_packs<T, Full, kUnrolled<T, E>>(rows, columns, [&](auto packs) {
      const Pack<T> dy_scale = dy_scales.at(packs.column);
      const auto u = u_of_columns.at(packs.column);
      packs.each([&](int64_t j, auto lanes) {
        map_packs<T>(dx + element + j, side, lanes, [&](int, int64_t ahead) {
          const int64_t i = element + j + ahead;
          const auto u_here = [&] {
            const Pack<T> mean = means.at(packs.column);
            const Pack<T> v = load_ahead(x + i, lanes, mean);
            return u(v, v - mean);
          };
          return epilogue.gradient(load_ahead(dy + i, lanes, Pack<T>{}), u_here, i, lanes) * dy_scale;
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
  const auto use = [&](auto e) { backward_apply_epilogue(dy, x, dx, shape, region, k, epilogue.z, stream, e); };
  epilogue.of_output ? with_inverse(epilogue, use) : with_activation(epilogue, use);
}

}  // namespace
}  // namespace my_ops::cpu
