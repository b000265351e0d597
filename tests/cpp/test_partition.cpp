// The cut of the work: regions tile the tensor exactly once, and keep the limits that the phases rely on.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "plan/partition.h"

namespace {

using my_ops::plan::Layout;
using my_ops::plan::Partition;
using my_ops::plan::Region;
using my_ops::plan::Shape;
namespace plan = my_ops::plan;

using Cut = Partition (*)(const Shape&, int64_t);

const std::vector<Shape> kShapes = {{32, 64, 112 * 112, Layout::contiguous},
                                    {32, 256, 56 * 56, Layout::contiguous},
                                    {32, 512, 28 * 28, Layout::contiguous},
                                    {32, 1024, 14 * 14, Layout::contiguous},
                                    {32, 2048, 7 * 7, Layout::contiguous},
                                    {1024, 2048, 7 * 7, Layout::contiguous},
                                    {2, 3, 25, Layout::contiguous},
                                    {1000, 3, 2, Layout::contiguous},
                                    {1, 1, 1 << 22, Layout::contiguous},
                                    {1, 1, 5, Layout::contiguous},
                                    {8, 3, 1 << 18, Layout::contiguous},
                                    {2, 5000, 255, Layout::contiguous},
                                    {32, 20, 14 * 14, Layout::contiguous},
                                    {3, 97, 199, Layout::contiguous},
                                    {2, 5000, 256, Layout::contiguous},
                                    {1, 5000, 49, Layout::contiguous},
                                    {1, 5000, 2, Layout::contiguous},
                                    {3, 7, 4097, Layout::contiguous},
                                    {32, 64, 112 * 112, Layout::channels_last},
                                    {32, 2048, 49, Layout::channels_last},
                                    {2, 4096, 1, Layout::channels_last},
                                    {64, 32, 1, Layout::channels_last},
                                    {100000, 3, 1, Layout::channels_last},
                                    {5, 1023, 7, Layout::channels_last},
                                    {1, 100000, 2, Layout::channels_last},
                                    {1, 1025, 3, Layout::channels_last}};

class PartitionTest : public testing::TestWithParam<std::tuple<Shape, Cut, int64_t>> {
 protected:
  Shape shape = std::get<0>(GetParam());
  Partition part = std::get<1>(GetParam())(shape, std::get<2>(GetParam()));
};

TEST_P(PartitionTest, TilesChannelsAndValues) {
  ASSERT_EQ(part.channels, shape.c);
  ASSERT_EQ(part.values, shape.n * shape.s);
  int64_t channel = 0;
  for (int64_t g = 0; g < part.groups(); ++g) {
    const Region region = part.region(g, 0);
    EXPECT_EQ(region.c0, channel);
    EXPECT_GT(region.c1, region.c0);
    channel = region.c1;
  }
  EXPECT_EQ(channel, shape.c);
  int64_t value = 0;
  for (int64_t k = 0; k < part.chunks(); ++k) {
    const Region region = part.region(0, k);
    EXPECT_EQ(region.b, value);
    EXPECT_GT(region.e, region.b);
    value = region.e;
  }
  EXPECT_EQ(value, shape.n * shape.s);
}

TEST_P(PartitionTest, KeepsTheLimitsOfThePhases) {
  const int64_t inner = shape.layout == Layout::channels_last ? 1 : shape.s;
  const int64_t width = std::get<2>(GetParam());
  if (std::get<1>(GetParam()) == Cut{plan::apply_partition} && plan::in_order(shape, part.group, width)) {
    EXPECT_TRUE(part.group == shape.c ? part.chunk % shape.s == 0 : part.chunk == shape.s) << "not in one piece";
  } else if (plan::by_rows(shape)) {
    EXPECT_LE(part.group * inner, plan::kMaxColumns);
    EXPECT_EQ(part.chunk % inner, 0) << "a row was cut";
  } else {
    if (std::get<1>(GetParam()) == Cut{plan::reduction_partition}) {
      EXPECT_LE(part.group, plan::kMaxRunGroup);
    }
    EXPECT_TRUE(part.group == 1 || part.chunk % shape.s == 0) << "an image was cut";
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, PartitionTest,
                         testing::Combine(testing::ValuesIn(kShapes),
                                          testing::Values(Cut{plan::reduction_partition},
                                                          Cut{plan::elementwise_partition}, Cut{plan::apply_partition}),
                                          testing::Values(int64_t{2}, int64_t{4}, int64_t{8})));

// Images that are problems of their own: the regions of each tile its values, which lie behind those of the one before.
TEST(InstancePartition, TilesEveryImage) {
  const Shape shape{3, 2500, 49, Layout::channels_last};
  const Partition part = plan::instance_partition(shape, 4);
  ASSERT_EQ(part.results(), 3 * 2500);
  ASSERT_EQ(part.groups(), 3 * part.groups_of_image());
  int64_t result = 0;
  for (int64_t g = 0; g < part.groups(); ++g) {
    const Region first = part.region(g, 0);
    const Region last = part.region(g, part.chunks() - 1);
    EXPECT_EQ(part.first_result(first) + first.c0, result);
    EXPECT_EQ(first.image, g / part.groups_of_image());
    EXPECT_EQ(first.b, first.image * 49);
    EXPECT_EQ(last.e, first.b + 49);
    result += first.c1 - first.c0;
  }
  EXPECT_EQ(result, part.results());
}

// A few huge channels must still occupy many cores, without the result depending on how many there are.
TEST(ReductionPartition, CutsHugeChannelsIntoChunks) {
  EXPECT_GE(plan::reduction_partition({1, 1, 1 << 22, Layout::contiguous}, 4).chunks(), 64);
  EXPECT_GE(plan::reduction_partition({8, 3, 1 << 18, Layout::contiguous}, 4).chunks(), 32);
  EXPECT_GE(plan::reduction_partition({1 << 20, 3, 1, Layout::channels_last}, 4).chunks(), 16);
}

// Images that are walked together: a chunk of several holds a whole number of such sets.
TEST(ReductionPartition, CutsBetweenSetsOfImages) {
  EXPECT_EQ(plan::reduction_partition({32, 64, 112 * 112, Layout::contiguous}, 4).chunk, 8 * 112 * 112);
  EXPECT_EQ(plan::reduction_partition({32, 64, 150 * 150, Layout::contiguous}, 4).chunk, 2 * 150 * 150);
}

// What at::parallel_for gives each thread: the longest share decides how long all of it takes.
TEST(Shares, AreEvenForTheShapesOfResNet50) {
  const std::vector<std::pair<int64_t, int64_t>> images = {{64, 112},  {64, 56},  {256, 56}, {128, 56},
                                                           {128, 28},  {512, 28}, {256, 28}, {256, 14},
                                                           {1024, 14}, {512, 14}, {512, 7},  {2048, 7}};
  for (const auto& [channels, size] : images) {
    for (const Layout layout : {Layout::contiguous, Layout::channels_last}) {
      for (const auto& [name, cut] : {std::pair{"reduction", Cut{plan::reduction_partition}},
                                      std::pair{"elementwise", Cut{plan::elementwise_partition}},
                                      std::pair{"apply", Cut{plan::apply_partition}}}) {
        for (const int64_t bytes : {2, 4, 8}) {
          const Partition part = cut({32, channels, size * size, layout}, bytes);
          const int64_t tasks = part.groups() * part.chunks();
          for (const int64_t threads : {2, 4, 8}) {
            if (tasks < threads) continue;  // a tensor too small for so many
            const int64_t share = (tasks + threads - 1) / threads;
            int64_t longest = 0;
            for (int64_t first = 0; first < tasks; first += share) {
              int64_t values = 0;
              for (int64_t task = first; task < std::min(first + share, tasks); ++task) {
                const Region region = part.region(task % part.groups(), task / part.groups());
                values += (region.c1 - region.c0) * (region.e - region.b);
              }
              longest = std::max(longest, values);
            }
            EXPECT_LE(longest, 1.05 * channels * part.values / threads)
                << channels << "x" << size << "x" << size << (layout == Layout::contiguous ? "" : ", channels-last")
                << ", " << name << ", " << bytes << " bytes, " << threads << " threads";
          }
        }
      }
    }
  }
}

// What is worth a second thread gets one.
TEST(ElementwisePartition, CutsSmallTensors) {
  for (const Shape& shape : {Shape{2, 256, 512, Layout::contiguous}, Shape{32, 160, 49, Layout::channels_last},
                             Shape{32, 160, 49, Layout::contiguous}, Shape{128, 1024, 1, Layout::channels_last}}) {
    const Partition part = plan::elementwise_partition(shape, 2);
    EXPECT_GE(part.groups() * part.chunks(), 4) << shape.n << "x" << shape.c << "x" << shape.s;
  }
}

// Whole packs and whole bytes of a mask: each region begins where one does, unless an image is of an odd size.
TEST(ApplyPartition, BeginsAtWholePacks) {
  for (const Shape& shape : {Shape{32, 1024, 196, Layout::contiguous}, Shape{32, 2048, 49, Layout::contiguous},
                             Shape{32, 20, 196, Layout::contiguous}}) {
    const Partition part = plan::apply_partition(shape, 4);
    ASSERT_TRUE(plan::in_order(shape, part.group, 4));
    ASSERT_GT(part.groups() * part.chunks(), 1);
    for (int64_t g = 0; g < part.groups(); ++g) {
      const Region region = part.region(g, 0);
      EXPECT_EQ(region.c0 * shape.s % 32, 0) << shape.c << "x" << shape.s;
    }
    if (part.group == shape.c) {
      EXPECT_EQ(part.chunk * shape.c % 32, 0) << shape.c << "x" << shape.s;
    }
  }
}

// Every region has work per channel: coefficients to spread, sums to merge in double. Few rows would not be worth it.
TEST(RowPartition, HasRowsEnoughForTheWorkPerChannel) {
  for (const int64_t rows : {32 * 49, 32 * 196, 32 * 784}) {
    for (const Cut cut : {plan::reduction_partition, plan::elementwise_partition}) {
      for (const int64_t bytes : {2, 4, 8}) {
        const Partition part = cut({32, 2048, rows / 32, Layout::channels_last}, bytes);
        EXPECT_GE(part.chunk, std::min<int64_t>(196, rows / 8)) << rows << " rows, " << bytes << " bytes";
        EXPECT_GE(part.chunks(), 8) << rows << " rows, " << bytes << " bytes";
      }
    }
  }
}

TEST(ReductionPartition, BoundsTheNumberOfRowChunks) {
  EXPECT_LE(plan::reduction_partition({1 << 24, 8, 1, Layout::channels_last}, 4).chunks(), 128);
}

}  // namespace
