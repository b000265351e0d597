// The SIMD phases of every instruction set this machine has, on every element type, against plain loops in long double.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "plan/partition.h"

namespace {

using namespace my_ops::cpu;
using my_ops::plan::Layout;
using my_ops::plan::Region;
using my_ops::plan::Shape;

struct InstructionSet {
  std::string name;
  const KernelTable& (*table)();
};

std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> sets = {{"default", kernels_default}};
#if defined(MY_OPS_WITH_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    sets.push_back({"avx2", kernels_avx2});
  }
#endif
#if defined(MY_OPS_WITH_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    sets.push_back({"avx512", kernels_avx512});
    sets.push_back({"avx512, for Intel's", kernels_avx512_intel});
  }
#endif
  return sets;
}

// ---- element types, converted the slow way ----

double value_of(double x) { return x; }
double value_of(float x) { return x; }
double value_of(bfloat16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
double value_of(float16 x) {
  const int exponent = x.bits >> 10 & 31;
  const int mantissa = x.bits & 1023;
  const double sign = x.bits >> 15 ? -1 : 1;
  if (exponent == 31) return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25));
}

/// The nearest value of a type with `digits` significant bits and exponents from `lowest` on; ties to even.
double rounded_to(double x, int digits, int lowest) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), lowest);
  return std::ldexp(std::nearbyint(std::ldexp(x, digits - 1 - exponent)), exponent - digits + 1);
}

template <class T>
struct Element;
template <>
struct Element<double> {
  static constexpr int digits = 53;
  static double of(double x) { return x; }
  static const Kernels<double>& kernels(const KernelTable& table) { return table.of_double; }
};
template <>
struct Element<float> {
  static constexpr int digits = 24;
  static float of(double x) { return static_cast<float>(x); }
  static const Kernels<float>& kernels(const KernelTable& table) { return table.of_float; }
};
template <>
struct Element<bfloat16> {
  static constexpr int digits = 8;
  static bfloat16 of(double x) {
    return {static_cast<uint16_t>(std::bit_cast<uint32_t>(static_cast<float>(rounded_to(x, 8, -126))) >> 16)};
  }
  static const Kernels<bfloat16>& kernels(const KernelTable& table) { return table.of_bfloat16; }
};
template <>
struct Element<float16> {
  static constexpr int digits = 11;
  static float16 of(double x) {
    const double r = std::fabs(rounded_to(x, 11, -14));
    const int sign = std::signbit(x) << 15;
    if (r < 0x1p-14) return {static_cast<uint16_t>(sign | static_cast<int>(r * 0x1p24))};
    const int exponent = std::ilogb(r);
    return {
        static_cast<uint16_t>(sign | (exponent + 15) << 10 | (static_cast<int>(std::ldexp(r, 10 - exponent)) & 1023))};
  }
  static const Kernels<float16>& kernels(const KernelTable& table) { return table.of_float16; }
};

int64_t index_of(const Shape& shape, int64_t v, int64_t c) {
  return shape.layout == Layout::channels_last ? v * shape.c + c : (v / shape.s * shape.c + c) * shape.s + v % shape.s;
}

// Widths around every vector length (2 to 64 lanes), as S and as C; short runs; folded rows; several regions.
std::vector<Shape> shapes() {
  std::vector<Shape> all;
  for (const int64_t s : {2, 3, 4, 5, 9, 31, 33, 49, 64, 65, 196, 255, 256, 257, 271, 272, 300}) {
    all.push_back({3, 5, s, Layout::contiguous});
  }
  for (const int64_t c : {2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 48, 64, 65, 127, 300, 1024, 1030}) {
    all.push_back({1, c, 13, Layout::channels_last});
  }
  all.push_back({1, 1, 10007, Layout::contiguous});
  all.push_back({2, 70, 49, Layout::contiguous});
  for (const int64_t s : {49, 64, 196, 255}) all.push_back({9, 20, s, Layout::contiguous});  // images side by side
  all.push_back({2, 600, 4, Layout::contiguous});
  for (const auto& [c, s] : {std::pair{700, 49}, {180, 196}, {97, 199}}) all.push_back({3, c, s, Layout::contiguous});
  all.push_back({1, 3, 20000, Layout::channels_last});
  return all;
}

std::string text(const Shape& shape) {
  return "N C S " + std::to_string(shape.n) + " " + std::to_string(shape.c) + " " + std::to_string(shape.s) +
         (shape.layout == Layout::channels_last ? " channels last" : "");
}

using Cut = my_ops::plan::Partition (*)(const Shape&, int64_t);

/// All of its partition.
template <class T>
std::vector<Region> regions_of(const Shape& shape, Cut cut = my_ops::plan::reduction_partition) {
  const auto part = cut(shape, sizeof(T));
  std::vector<Region> regions;
  for (int64_t g = 0; g < part.groups(); ++g) {
    for (int64_t k = 0; k < part.chunks(); ++k) regions.push_back(part.region(g, k));
  }
  return regions;
}

template <class T>
class Phases : public testing::Test {
 protected:
  using A = Accumulator<T>;

  std::vector<T> values(const Shape& shape, double mean, double std, unsigned seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<double> normal(mean, std);
    std::vector<T> data(shape.n * shape.c * shape.s);
    for (T& x : data) x = Element<T>::of(normal(generator));
    return data;
  }

  std::vector<A> per_channel(const Shape& shape, double low, double high, unsigned seed) {
    std::mt19937 generator(seed);
    std::uniform_real_distribution<double> uniform(low, high);
    std::vector<A> data(shape.c);
    for (A& x : data) x = static_cast<A>(uniform(generator));
    return data;
  }

  /// body(kernels, shape, every region of its partition).
  template <class Body>
  void for_all(Body body) {
    for (const auto& set : instruction_sets()) {
      for (const Shape& shape : shapes()) {
        SCOPED_TRACE(set.name + ", " + text(shape));
        body(Element<T>::kernels(set.table()), shape, regions_of<T>(shape));
        if (this->HasFatalFailure()) return;
      }
    }
  }

  static constexpr double kUnit = sizeof(A) == 8 ? 0x1p-53 : 0x1p-24;
  /// One rounding to the element type; float16 is the one whose subnormals (2^-24 apart) come into reach.
  double rounding(double want) const {
    return std::ldexp(std::fabs(want), -Element<T>::digits) + 0x1p-25 * (sizeof(T) == 2);
  }
};

using Elements = testing::Types<double, float, bfloat16, float16>;
TYPED_TEST_SUITE(Phases, Elements);

TYPED_TEST(Phases, StatsAreTheMoments) {
  using T = TypeParam;
  this->for_all([&](const Kernels<T>& kernels, const Shape& shape, const std::vector<Region>& regions) {
    const auto x = this->values(shape, 3.0, 2.0, 1);
    std::vector<double> mean(shape.c);
    std::vector<double> m2(shape.c);
    for (const Region& region : regions) {
      kernels.stats(x.data(), shape, region, mean.data(), m2.data());
      const auto n = static_cast<double>(region.e - region.b);
      for (int64_t c = region.c0; c < region.c1; ++c) {
        long double want_mean = 0;
        for (int64_t v = region.b; v < region.e; ++v) want_mean += value_of(x[index_of(shape, v, c)]) / n;
        long double want_m2 = 0;
        for (int64_t v = region.b; v < region.e; ++v) {
          want_m2 += std::pow(value_of(x[index_of(shape, v, c)]) - want_mean, 2.0L);
        }
        ASSERT_LE(std::fabs(mean[c] - want_mean), 4 * this->kUnit * 5.0) << "channel " << c;
        // float64 has no wider type to sum in.
        ASSERT_LE(std::fabs(m2[c] - want_m2), (sizeof(T) == 8 ? 24 : 8) * this->kUnit * (want_m2 + n))
            << "channel " << c;
      }
    }
  });
}

TYPED_TEST(Phases, StatsOfConstantChannelsAreExact) {
  using T = TypeParam;
  this->for_all([&](const Kernels<T>& kernels, const Shape& shape, const std::vector<Region>& regions) {
    const T constant = Element<T>::of(1234.5);
    const std::vector<T> x(shape.n * shape.c * shape.s, constant);
    std::vector<double> mean(shape.c);
    std::vector<double> m2(shape.c, 1.0);
    for (const Region& region : regions) kernels.stats(x.data(), shape, region, mean.data(), m2.data());
    for (int64_t c = 0; c < shape.c; ++c) {
      ASSERT_EQ(mean[c], value_of(constant));
      ASSERT_EQ(m2[c], 0.0);
    }
  });
}

TYPED_TEST(Phases, ApplyIsTheAffineMap) {
  using T = TypeParam;
  this->for_all([&](const Kernels<T>& kernels, const Shape& shape, const std::vector<Region>& reduced) {
    const auto x = this->values(shape, 3.0, 2.0, 2);
    const auto center = this->per_channel(shape, 2, 4, 3);
    const auto scale = this->per_channel(shape, -2, 2, 4);
    const auto shift = this->per_channel(shape, -1, 1, 5);
    const auto check = [&](const std::vector<Region>& regions, bool stream) {
      const T untouched = Element<T>::of(77.0);
      std::vector<T> y(x.size() + 16, untouched);
      for (const Region& region : regions) {
        kernels.apply(x.data(), y.data(), shape, region, {center.data(), scale.data(), shift.data()}, stream);
      }
      for (int64_t c = 0; c < shape.c; ++c) {
        for (int64_t v = 0; v < shape.n * shape.s; ++v) {
          const int64_t i = index_of(shape, v, c);
          const double want = (value_of(x[i]) - center[c]) * scale[c] + shift[c];
          const double terms = std::fabs(value_of(x[i]) - center[c]) * std::fabs(scale[c]) + std::fabs(shift[c]);
          ASSERT_NEAR(value_of(y[i]), want, 3 * this->kUnit * terms + this->rounding(want))
              << "channel " << c << " value " << v;
        }
      }
      for (size_t i = x.size(); i < y.size(); ++i) ASSERT_EQ(value_of(y[i]), 77.0) << "wrote behind the end";
    };
    for (const bool stream : {false, true}) {
      check(reduced, stream);
      check(regions_of<T>(shape, my_ops::plan::apply_partition), stream);
    }
  });
}

TYPED_TEST(Phases, BackwardReduceSums) {
  using T = TypeParam;
  this->for_all([&](const Kernels<T>& kernels, const Shape& shape, const std::vector<Region>& regions) {
    const auto x = this->values(shape, 3.0, 2.0, 6);
    const auto dy = this->values(shape, 0.5, 1.0, 7);
    const auto mean = this->per_channel(shape, 2, 4, 8);
    const auto invstd = this->per_channel(shape, 0.4, 0.6, 9);
    std::vector<double> sum_dy(shape.c);
    std::vector<double> sum_dy_xhat(shape.c);
    for (const Region& region : regions) {
      kernels.backward_reduce(dy.data(), x.data(), shape, region, mean.data(), invstd.data(), sum_dy.data(),
                              sum_dy_xhat.data());
      for (int64_t c = region.c0; c < region.c1; ++c) {
        long double want = 0, want_xhat = 0, terms = 0, terms_xhat = 0;
        for (int64_t v = region.b; v < region.e; ++v) {
          const int64_t i = index_of(shape, v, c);
          const long double xhat = (static_cast<long double>(value_of(x[i])) - mean[c]) * invstd[c];
          want += value_of(dy[i]);
          want_xhat += value_of(dy[i]) * xhat;
          terms += std::fabs(value_of(dy[i]));
          terms_xhat += std::fabs(value_of(dy[i]) * xhat);
        }
        ASSERT_LE(std::fabs(sum_dy[c] - want), 6 * this->kUnit * terms) << "channel " << c;
        ASSERT_LE(std::fabs(sum_dy_xhat[c] - want_xhat), 8 * this->kUnit * terms_xhat) << "channel " << c;
      }
    }
  });
}

TYPED_TEST(Phases, BackwardApplyInTrainingAndEval) {
  using T = TypeParam;
  using A = Accumulator<T>;
  this->for_all([&](const Kernels<T>& kernels, const Shape& shape, const std::vector<Region>& regions) {
    const auto x = this->values(shape, 3.0, 2.0, 10);
    const auto dy = this->values(shape, 0.5, 1.0, 11);
    const auto mean = this->per_channel(shape, 2, 4, 12);
    const auto dy_scale = this->per_channel(shape, -2, 2, 13);
    const auto x_scale = this->per_channel(shape, -1, 1, 14);
    const auto shift = this->per_channel(shape, -1, 1, 15);
    for (const auto& [training, stream] : {std::pair{true, false}, {true, true}, {false, false}, {false, true}}) {
      std::vector<T> dx(x.size());
      const BackwardCoefficients<A> k{mean.data(), dy_scale.data(), training ? x_scale.data() : nullptr, shift.data()};
      for (const Region& region : regions) {
        kernels.backward_apply(dy.data(), training ? x.data() : nullptr, dx.data(), shape, region, k, stream);
      }
      for (int64_t c = 0; c < shape.c; ++c) {
        for (int64_t v = 0; v < shape.n * shape.s; ++v) {
          const int64_t i = index_of(shape, v, c);
          const double through_x = training ? (value_of(x[i]) - mean[c]) * x_scale[c] : 0;
          const double want = (value_of(dy[i]) + through_x) * dy_scale[c] + (training ? shift[c] : 0);
          const double terms = (std::fabs(value_of(dy[i])) + std::fabs(through_x)) * std::fabs(dy_scale[c]) + 1;
          ASSERT_NEAR(value_of(dx[i]), want, 3 * this->kUnit * terms + this->rounding(want))
              << "channel " << c << " value " << v;
        }
      }
    }
  });
}

/// Bits of everything that the phases compute.
template <class T, class A = Accumulator<T>>
struct Results {
  std::vector<double> mean, m2, sum_dy, sum_dy_xhat;
  std::vector<T> y, y_in_order, dx;

  bool operator==(const Results& other) const {
    const auto same = [](const auto& a, const auto& b) {
      return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
    };
    return same(mean, other.mean) && same(m2, other.m2) && same(sum_dy, other.sum_dy) &&
           same(sum_dy_xhat, other.sum_dy_xhat) && same(y, other.y) && same(y_in_order, other.y_in_order) &&
           same(dx, other.dx);
  }
};

#if defined(MY_OPS_WITH_AVX512)
TYPED_TEST(Phases, RequestsChangeNoBit) {
  using T = TypeParam;
  using A = Accumulator<T>;
  if (instruction_sets().back().table != kernels_avx512_intel) GTEST_SKIP() << "this machine has no AVX-512";
  auto large = shapes();  // and those of which more than 8 MB are read from memory
  large.push_back({4, 5, 230000, Layout::contiguous});
  large.push_back({5, 8192, 110, Layout::contiguous});
  large.push_back({2, 36, 64000, Layout::channels_last});
  for (const Shape& shape : large) {
    SCOPED_TRACE(text(shape));
    const auto regions = regions_of<T>(shape);
    const auto x = this->values(shape, 3.0, 2.0, 20);
    const auto dy = this->values(shape, 0.5, 1.0, 21);
    const auto a = this->per_channel(shape, 2, 4, 22);
    const auto b = this->per_channel(shape, 0.4, 0.6, 23);
    const auto c = this->per_channel(shape, -1, 1, 24);
    const ForwardCoefficients<A> forward{a.data(), b.data(), c.data()};
    const BackwardCoefficients<A> backward{a.data(), b.data(), c.data(), c.data()};
    const auto results = [&](const Kernels<T>& kernels, bool stream) {
      const std::vector<double> channels(shape.c);
      const std::vector<T> image(x.size());
      Results<T> got{channels, channels, channels, channels, image, image, image};
      for (const Region& region : regions) {
        kernels.stats(x.data(), shape, region, got.mean.data(), got.m2.data());
        kernels.apply(x.data(), got.y.data(), shape, region, forward, stream);
        kernels.backward_reduce(dy.data(), x.data(), shape, region, a.data(), b.data(), got.sum_dy.data(),
                                got.sum_dy_xhat.data());
        kernels.backward_apply(dy.data(), x.data(), got.dx.data(), shape, region, backward, stream);
      }
      for (const Region& region : regions_of<T>(shape, my_ops::plan::apply_partition)) {
        kernels.apply(x.data(), got.y_in_order.data(), shape, region, forward, stream);
      }
      return got;
    };
    for (const bool stream : {false, true}) {
      const auto any = results(Element<T>::kernels(kernels_avx512()), stream);
      ASSERT_TRUE(any == results(Element<T>::kernels(kernels_avx512_intel()), stream)) << "stream " << stream;
    }
  }
}
#endif

// The identity map shows the conversions: every 16-bit pattern must come back as itself, NaN as NaN.
template <class T>
void round_trip() {
  std::vector<T> x(1 << 16);
  for (size_t i = 0; i < x.size(); ++i) x[i].bits = static_cast<uint16_t>(i);
  const float zero = 0;
  const float one = 1;
  for (const auto& set : instruction_sets()) {
    std::vector<T> y(x.size());
    const Shape shape{1, 1, 1 << 16, Layout::contiguous};
    Element<T>::kernels(set.table()).apply(x.data(), y.data(), shape, {0, 1, 0, 1 << 16}, {&zero, &one, &zero}, false);
    for (size_t i = 0; i < x.size(); ++i) {
      if (std::isnan(value_of(x[i]))) {
        ASSERT_TRUE(std::isnan(value_of(y[i]))) << set.name << " bits " << i;
      } else {
        ASSERT_EQ(value_of(y[i]), value_of(x[i])) << set.name << " bits " << i;
      }
    }
  }
}
TEST(Conversion, EveryBfloat16ComesBack) { round_trip<bfloat16>(); }
TEST(Conversion, EveryFloat16ComesBack) { round_trip<float16>(); }

// Scaled by 1 + 2^-9 and the like, results fall between two 16-bit values: rounding to nearest even, subnormals
// included.
template <class T>
void rounds(double largest, int digits, int lowest) {
  std::mt19937 generator(3);
  for (const auto& set : instruction_sets()) {
    for (const float scale : {1.001953125f, 0.333f, 1.5f, 0x1p-10f, 0x1p-20f, 3.7e4f}) {
      std::vector<T> x(1 << 16);
      for (size_t i = 0; i < x.size(); ++i) x[i].bits = static_cast<uint16_t>(i);
      std::vector<T> y(x.size());
      const float zero = 0;
      const Shape shape{1, 1, 1 << 16, Layout::contiguous};
      Element<T>::kernels(set.table())
          .apply(x.data(), y.data(), shape, {0, 1, 0, 1 << 16}, {&zero, &scale, &zero}, false);
      for (size_t i = 0; i < x.size(); ++i) {
        const float product = static_cast<float>(value_of(x[i])) * scale;
        if (std::isnan(product)) continue;
        double want = rounded_to(product, digits, lowest);
        if (std::fabs(want) > largest) want = std::copysign(INFINITY, want);
        ASSERT_EQ(value_of(y[i]), want) << set.name << " bits " << i << " scale " << scale;
      }
    }
  }
}
TEST(Conversion, Bfloat16RoundsToNearestEven) { rounds<bfloat16>(std::bit_cast<float>(0x7f7f0000u), 8, -126); }
TEST(Conversion, Float16RoundsToNearestEven) { rounds<float16>(65504.0, 11, -14); }

// One-pass sums cancel when the pivot is far from the mean: outliers at the sampled places must not hurt.
TEST(Stats, AnOutlierAmongTheSamplesCostsNoPrecision) {
  for (const auto& set : instruction_sets()) {
    for (const Layout layout : {Layout::contiguous, Layout::channels_last}) {
      const Shape shape = layout == Layout::contiguous ? Shape{1, 2, 4096, layout} : Shape{4096, 2, 1, layout};
      std::vector<float> x(8192);
      std::mt19937 generator(1);
      std::normal_distribution<float> normal(0.0f, 1e-3f);
      for (float& value : x) value = normal(generator);
      for (int64_t v = 0; v < 4096; v += 512) x[index_of(shape, v, 1)] = v == 1024 ? 1.0f : 3e-3f;
      double mean[2];
      double m2[2];
      set.table().of_float.stats(x.data(), shape, {0, 2, 0, 4096}, mean, m2);
      for (int64_t c = 0; c < 2; ++c) {
        double want = 0;
        for (int64_t v = 0; v < 4096; ++v) want += x[index_of(shape, v, c)] / 4096.0;
        double want_m2 = 0;
        for (int64_t v = 0; v < 4096; ++v) want_m2 += std::pow(x[index_of(shape, v, c)] - want, 2);
        EXPECT_NEAR(mean[c], want, 1e-9) << set.name;
        EXPECT_NEAR(m2[c], want_m2, 1e-6 * want_m2) << set.name;
      }
    }
  }
}

// Images with large uniform areas: the samples miss what lies between them, in most channels.
TEST(Stats, MostSamplesInAUniformArea) {
  for (const auto& set : instruction_sets()) {
    for (const Shape& shape : {Shape{1, 7, 8192, Layout::contiguous}, Shape{100, 40, 49, Layout::contiguous},
                               Shape{3000, 20, 1, Layout::channels_last}}) {
      const int64_t values = shape.n * shape.s;
      std::vector<float> x(shape.c * values);
      for (int64_t c = 0; c < shape.c; ++c) {
        for (int64_t v = 0; v < values; ++v) {
          x[index_of(shape, v, c)] = v % (values / 32) < 2 ? 1000.0f + c : (v % 2 ? 0.0f : 1e-3f * c);
        }
      }
      std::vector<double> mean(shape.c);
      std::vector<double> m2(shape.c);
      const auto part = my_ops::plan::reduction_partition(shape, 4);
      for (int64_t g = 0; g < part.groups(); ++g) {
        const Region region = part.region(g, 0);
        set.table().of_float.stats(x.data(), shape, region, mean.data(), m2.data());
        for (int64_t c = region.c0; c < region.c1; ++c) {
          long double want = 0;
          for (int64_t v = region.b; v < region.e; ++v) want += x[index_of(shape, v, c)];
          want /= region.e - region.b;
          long double want_m2 = 0;
          for (int64_t v = region.b; v < region.e; ++v) want_m2 += std::pow(x[index_of(shape, v, c)] - want, 2.0L);
          // Equal values round alike within a block of sums, so these errors add up. Without the second reading both
          // are a hundred times larger.
          const double deviation = std::sqrt(static_cast<double>(want_m2) / (region.e - region.b));
          EXPECT_NEAR(mean[c], want, 8 * 0x1p-24 * deviation) << set.name << " channel " << c;
          EXPECT_NEAR(m2[c], want_m2, 64 * 0x1p-24 * want_m2) << set.name << " channel " << c;
        }
      }
    }
  }
}

TEST(Stats, ValuesWhoseSquaresOverflowFloat) {
  for (const auto& set : instruction_sets()) {
    const Shape shape{1, 1, 1000, Layout::contiguous};
    std::vector<float> x(1000);
    for (size_t i = 0; i < x.size(); ++i) x[i] = i % 2 ? 1e30f : -3e30f;
    double mean;
    double m2;
    set.table().of_float.stats(x.data(), shape, {0, 1, 0, 1000}, &mean, &m2);
    EXPECT_NEAR(mean, -1e30, 1e24) << set.name;
    EXPECT_NEAR(m2, 4e63, 1e57) << set.name;
  }
}

TEST(Stats, NanAndInfinityStayInTheirChannel) {
  for (const auto& set : instruction_sets()) {
    for (const Layout layout : {Layout::contiguous, Layout::channels_last}) {
      const Shape shape = layout == Layout::contiguous ? Shape{1, 3, 100, layout} : Shape{100, 3, 1, layout};
      std::vector<float> x(300, 2.0f);
      x[index_of(shape, 17, 0)] = NAN;
      x[index_of(shape, 99, 2)] = INFINITY;
      double mean[3];
      double m2[3];
      set.table().of_float.stats(x.data(), shape, {0, 3, 0, 100}, mean, m2);
      EXPECT_TRUE(std::isnan(mean[0]) && std::isnan(m2[0])) << set.name;
      EXPECT_EQ(mean[1], 2.0) << set.name;
      EXPECT_EQ(m2[1], 0.0) << set.name;
      EXPECT_EQ(mean[2], INFINITY) << set.name;
      EXPECT_TRUE(std::isnan(m2[2])) << set.name;
    }
  }
}

}  // namespace
