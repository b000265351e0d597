// The formulas of math/normalization.h against what they abbreviate, computed the long way in double.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "math/normalization.h"

namespace {

namespace math = my_ops::math;
using Moments = math::Moments<double>;

Moments moments_of(const std::vector<double>& values) {
  double mean = 0;
  for (const double x : values) mean += x / static_cast<double>(values.size());
  double m2 = 0;
  for (const double x : values) m2 += (x - mean) * (x - mean);
  return {mean, m2, static_cast<int64_t>(values.size())};
}

std::vector<double> normal_values(int count, double mean, double std, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> distribution(mean, std);
  std::vector<double> values(count);
  for (double& x : values) x = distribution(generator);
  return values;
}

TEST(Merge, JoinsTwoPartsOfDifferentSizeAndMean) {
  const auto a = normal_values(7, 3.0, 1.0, 1);
  const auto b = normal_values(1000, -5.0, 0.1, 2);
  auto all = a;
  all.insert(all.end(), b.begin(), b.end());
  const Moments want = moments_of(all);
  const Moments got = math::merge(moments_of(a), moments_of(b));
  EXPECT_NEAR(got.mean, want.mean, 1e-13);
  EXPECT_NEAR(got.m2, want.m2, 1e-12 * want.m2);
  EXPECT_EQ(got.count, 1007);
}

TEST(Merge, ManyPartsInAnyShape) {
  Moments chain{0, 0, 0};
  std::vector<double> all;
  for (int part = 0; part < 50; ++part) {
    const auto values = normal_values(part % 7 + 1, 1e4 + part, 1.0, part);
    all.insert(all.end(), values.begin(), values.end());
    chain = math::merge(chain, moments_of(values));
  }
  const Moments want = moments_of(all);
  EXPECT_NEAR(chain.mean, want.mean, 1e-15 * 1e4);
  EXPECT_NEAR(chain.m2, want.m2, 1e-10 * want.m2);
}

TEST(Merge, AnEmptyPartChangesNothing) {
  const Moments some{2.0, 3.0, 4};
  const Moments none{std::nan(""), std::nan(""), 0};
  for (const Moments& got : {math::merge(some, none), math::merge(none, some)}) {
    EXPECT_EQ(got.mean, 2.0);
    EXPECT_EQ(got.m2, 3.0);
    EXPECT_EQ(got.count, 4);
  }
}

TEST(Variance, BiasedUnbiasedAndEmpty) {
  const Moments moments{0.0, 12.0, 4};
  EXPECT_EQ(math::variance(moments), 3.0);
  EXPECT_EQ(math::unbiased_variance(moments), 4.0);
  EXPECT_EQ(math::variance(Moments{0.0, 0.0, 0}), 0.0);
}

TEST(InverseStd, EpsIsAddedToTheVariance) { EXPECT_DOUBLE_EQ(math::inverse_std(3.0, 1.0), 0.5); }

TEST(UpdateRunning, WeighsTheBatchWithMomentum) { EXPECT_DOUBLE_EQ(math::update_running(8.0, 4.0, 0.25), 7.0); }

// With a mean of 1e6 and std 1, float32 holds x to 0.03. The affine map must lose nothing beyond that: its error
// against the exact formula on the same float32 x is a few roundings of y, not of mean * scale.
TEST(ForwardAffine, KeepsThePrecisionOfXWhenTheMeanIsLarge) {
  const double mean = 1e6 + 0.3;
  const double invstd = 1.25;
  const float gamma = 1.5f;
  const float beta = -0.75f;
  const auto k = math::forward_affine<float>(mean, invstd, gamma, beta);
  for (double x = 1e6 - 4; x <= 1e6 + 4; x += 0.125) {
    const float xf = static_cast<float>(x);
    const float y = (xf - k.center) * k.scale + k.shift;
    const double want = (static_cast<double>(xf) - mean) * invstd * gamma + beta;
    EXPECT_NEAR(y, want, 2e-6) << "x = " << x;
  }
}

TEST(BackwardAffine, IsTheTextbookGradient) {
  const auto x = normal_values(20, 2.0, 3.0, 5);
  const auto dy = normal_values(20, 0.5, 1.0, 6);
  const Moments batch = moments_of(x);
  const double r = math::inverse_std(math::variance(batch), 1e-3);
  const double gamma = -1.75;
  double sum_dy = 0;
  double sum_dy_xhat = 0;
  for (int i = 0; i < 20; ++i) {
    sum_dy += dy[i];
    sum_dy_xhat += dy[i] * (x[i] - batch.mean) * r;
  }
  const auto k = math::backward_affine<double>(gamma, r, sum_dy, sum_dy_xhat, 20);
  for (int i = 0; i < 20; ++i) {
    const double xhat = (x[i] - batch.mean) * r;
    const double want = gamma * r * (dy[i] - sum_dy / 20 - xhat * sum_dy_xhat / 20);
    EXPECT_NEAR((dy[i] + (x[i] - batch.mean) * k.x_scale) * k.dy_scale + k.shift, want, 1e-14);
  }
}

}  // namespace
