// The launch plan: which family serves which shape, and that every tiling visits every value once and adds it up once.
#include <gtest/gtest.h>

#include <cstdint>
#include <ostream>
#include <utility>
#include <vector>

#include "cuda/launch_plan.h"

namespace {

using my_ops::cuda::Device;
using my_ops::cuda::Family;
using my_ops::cuda::LaunchPlan;
using my_ops::cuda::Problem;
using my_ops::cuda::Tile;
using my_ops::cuda::Tiling;
using my_ops::plan::Layout;
using my_ops::plan::Shape;
namespace cuda = my_ops::cuda;

constexpr Device kH200{132, 227 << 10, 8, 132, int64_t{120} << 20};
constexpr Device kA100{108, 163 << 10, 1, 108, int64_t{80} << 20};
constexpr Device kSmall{6, 99 << 10, 8, 6, 0};
constexpr Device kGridAlone{132, 227 << 10, 0, 132, 0};

Shape images(int64_t n, int64_t c, int64_t s) { return {n, c, s, Layout::contiguous}; }
Shape rows(int64_t n, int64_t c, int64_t s = 1) { return {n, c, s, Layout::channels_last}; }

struct Choice {
  Shape shape;
  int32_t element_bytes;
  Family forward;
  int32_t forward_team;
  Family backward;
  int32_t backward_team;
};

void PrintTo(const Choice& choice, std::ostream* out) {
  *out << choice.shape.n << "x" << choice.shape.c << "x" << choice.shape.s
       << (choice.shape.layout == Layout::contiguous ? "" : " channels last") << ", " << choice.element_bytes
       << " bytes";
}

class PlanTable : public testing::TestWithParam<Choice> {};

TEST_P(PlanTable, Family) {
  const Choice& wanted = GetParam();
  const Problem problem{wanted.shape, wanted.element_bytes, true};
  const LaunchPlan forward = cuda::plan_whole(problem, 1, kH200);
  const LaunchPlan backward = cuda::plan_whole(problem, 2, kH200);
  EXPECT_EQ(forward.family, wanted.forward) << static_cast<int>(forward.family);
  EXPECT_EQ(forward.team, wanted.forward_team);
  EXPECT_EQ(backward.family, wanted.backward) << static_cast<int>(backward.family);
  EXPECT_EQ(backward.team, wanted.backward_team);
}

constexpr Family kStream = Family::stream;
constexpr Family kFused = Family::fused;
constexpr Family kGrid = Family::grid;

// ResNet-50 on an H200, then shapes at the edges of each family.
INSTANTIATE_TEST_SUITE_P(H200, PlanTable,
                         testing::Values(Choice{images(32, 64, 112 * 112), 2, kFused, 8, kFused, 8},
                                         Choice{images(32, 64, 56 * 56), 2, kFused, 8, kFused, 8},
                                         Choice{images(32, 256, 56 * 56), 2, kFused, 8, kFused, 8},
                                         Choice{images(32, 512, 28 * 28), 2, kFused, 2, kFused, 4},
                                         Choice{images(32, 1024, 14 * 14), 2, kFused, 1, kFused, 2},
                                         Choice{images(32, 2048, 7 * 7), 2, kFused, 1, kFused, 2},
                                         Choice{images(32, 2048, 7 * 7), 4, kFused, 1, kFused, 2},
                                         Choice{images(32, 16, 112 * 112), 2, kFused, 8, kFused, 8},
                                         Choice{images(256, 64, 112 * 112), 2, kGrid, 32, kGrid, 64},
                                         Choice{images(256, 256, 56 * 56), 2, kFused, 8, kGrid, 16},
                                         Choice{images(2048, 64, 112 * 112), 2, kStream, 1, kStream, 1},
                                         Choice{rows(64, 512, 28 * 28), 4, kStream, 1, kGrid, 66},
                                         Choice{images(256, 2048, 7 * 7), 2, kFused, 8, kFused, 8},
                                         Choice{rows(32, 2048, 7 * 7), 2, kFused, 8, kFused, 8},
                                         Choice{rows(32, 64, 112 * 112), 2, kStream, 1, kStream, 1},
                                         Choice{images(32, 3, 224 * 224), 4, kStream, 1, kStream, 1},
                                         Choice{images(2, 3, 25), 4, kStream, 1, kStream, 1},
                                         Choice{images(2, 3, 20000), 2, kFused, 8, kFused, 8},
                                         Choice{images(8, 16, 16), 4, kFused, 8, kFused, 8},
                                         Choice{rows(64, 32), 4, kFused, 8, kFused, 8},
                                         Choice{images(32, 64, 56 * 56), 8, kStream, 1, kStream, 1}));

TEST(Plan, UnalignedTensorsStream) {
  EXPECT_EQ(cuda::plan_whole({images(32, 256, 56 * 56), 2, false}, 1, kH200).family, kStream);
}

TEST(Plan, NoClustersBeforeHopper) {
  for (const int64_t c : {64, 256, 2048}) {
    EXPECT_EQ(cuda::plan_whole({images(32, c, 196), 2, true}, 1, kA100).team, 1);
  }
}

TEST(Plan, NoTeamMeansStream) {
  EXPECT_EQ(cuda::plan_whole({images(32, 2048, 49), 2, true}, 1, {132, 227 << 10, 0}).family, kStream);
}

/// A strip that a cluster does not hold: by the grid only if the inputs exceed what the device says.
TEST(Plan, GridOnlyForLargeInputs) {
  const Problem problem{images(256, 64, 112 * 112), 2, true};
  Device device = kH200;
  device.grid_bytes = problem.shape.n * problem.shape.c * problem.shape.s * 2;
  EXPECT_EQ(cuda::plan_whole(problem, 1, device).family, kGrid);
  ++device.grid_bytes;
  EXPECT_EQ(cuda::plan_whole(problem, 1, device).family, kStream);
  device.resident = 0;
  EXPECT_EQ(cuda::plan_whole(problem, 2, device).family, kStream);
}

TEST(Plan, StreamingGridsFillTheDevice) {
  for (const Shape& shape :
       {images(32, 64, 112 * 112), images(1, 1, int64_t{1} << 26), rows(100352, 64), rows(100352, 2048)}) {
    const Tiling tiling = cuda::plan_stream({shape, 2, true}, kH200);
    EXPECT_GE(tiling.tiles() * tiling.threads(), 132 * 1024) << shape.n << " " << shape.c << " " << shape.s;
  }
}

struct Cut {
  Shape shape;
  int32_t element_bytes;
  bool aligned;
};

void PrintTo(const Cut& cut, std::ostream* out) {
  PrintTo(Choice{cut.shape, cut.element_bytes, kStream, 1, kStream, 1}, out);
  *out << (cut.aligned ? "" : ", unaligned");
}

/// The number of each element's channel, for every element of a dense tensor.
std::vector<int64_t> channels_of_elements(const Tiling& tiling, int64_t size) {
  std::vector<int64_t> channel(size);
  for (int64_t i = 0; i < size; ++i) channel[i] = i / tiling.inner % tiling.channels;
  return channel;
}

class TilingTest : public testing::TestWithParam<Cut> {
 protected:
  void check(const Tiling& tiling) {
    const Shape& shape = GetParam().shape;
    const int64_t size = shape.n * shape.c * shape.s;
    std::vector<int> visits(size);
    std::vector<int64_t> values(shape.c);  // in the parts of each channel, by formula
    const std::vector<int64_t> channel_of = channels_of_elements(tiling, size);
    for (int64_t index = 0; index < tiling.tiles(); ++index) {
      const Tile tile = tiling.tile(index % tiling.strips(), index / tiling.strips());
      ASSERT_LT(tile.r0, tile.r1);
      const int64_t first = tiling.first_channel(tile.strip);
      const int64_t last = first + tiling.channels_of(tile.strip) - 1;
      ASSERT_LE(tiling.channels_of(tile.strip), tiling.most_channels());
      visit(tiling, tile, [&](int64_t element, int64_t column) {
        ASSERT_LT(element, size);
        ++visits[element];
        const int64_t channel = channel_of[element];
        ASSERT_LE(first, channel);
        ASSERT_GE(last, channel);
        const auto columns = tiling.columns_of(tile.strip, channel);
        ASSERT_LE(columns.b, column);
        ASSERT_GT(columns.e, column);
      });
      for (int64_t channel = first; channel <= last; ++channel) {
        const int64_t part = tiling.part(tile, channel);
        ASSERT_LT(part, tiling.parts_of(channel));
        ASSERT_LE(tiling.parts_of(channel), tiling.most_parts());
        const Tile back = tiling.tile_of_part(channel, part);
        ASSERT_EQ(back.strip, tile.strip);
        ASSERT_EQ(back.r0, tile.r0);
        values[channel] += tiling.values(tile, channel);
      }
    }
    for (const int count : visits) ASSERT_EQ(count, 1);
    for (const int64_t count : values) ASSERT_EQ(count, shape.n * shape.s);
  }

  static void check_byte(const Tiling& tiling, int64_t strip, int64_t row, int64_t x, int32_t lanes) {
    const int64_t first = tiling.element(strip, row, x * tiling.vector);
    const bool exists = tiling.exists(strip, row, x * tiling.vector);
    ASSERT_TRUE(!exists || first % 8 == 0);
    for (int64_t lane = 1; lane < lanes; ++lane) {
      const int64_t column = (x + lane) * tiling.vector;
      ASSERT_EQ(tiling.element(strip, row, column), first + lane * tiling.vector);
      ASSERT_EQ(tiling.exists(strip, row, column), exists);
    }
  }

  /// body(element, column) for all values of the tile, one vector at a time as the threads do.
  template <class Body>
  static void visit(const Tiling& tiling, const Tile& tile, Body body) {
    for (int64_t row = tile.r0; row < tile.r1; ++row) {
      for (int64_t x = 0; x < tiling.lanes_x; ++x) {
        const int64_t column = x * tiling.vector;
        if (!tiling.exists(tile.strip, row, column)) continue;
        EXPECT_EQ(tiling.element(tile.strip, row, column) % tiling.vector, 0);
        for (int64_t i = 0; i < tiling.vector; ++i) {
          body(tiling.element(tile.strip, row, column + i), column + i);
        }
      }
    }
  }
};

TEST_P(TilingTest, StreamVisitsEveryValueOnce) {
  const Cut& cut = GetParam();
  for (const Device& device : {kH200, kSmall}) {
    const Tiling tiling = cuda::plan_stream({cut.shape, cut.element_bytes, cut.aligned}, device);
    EXPECT_LE(tiling.threads(), 256);
    EXPECT_LE(cuda::scratch_bytes(tiling, cut.element_bytes), 48 << 10);
    check(tiling);
  }
}

TEST_P(TilingTest, FusedVisitsEveryValueOnce) {
  const Cut& cut = GetParam();
  for (const Device& device : {kH200, kA100, kSmall, kGridAlone}) {
    for (const auto& [inputs, masked] : {std::pair{1, false}, std::pair{1, true}, std::pair{2, false}}) {
      const Problem problem{cut.shape, cut.element_bytes, cut.aligned, masked};
      const LaunchPlan plan = cuda::plan_whole(problem, inputs, device);
      if (plan.family == kStream) continue;
      EXPECT_LE(plan.tiling.threads(), 512);
      EXPECT_LE(plan.tiling.chunks(), plan.team);
      EXPECT_LE(plan.teams, plan.tiling.strips());
      EXPECT_GE(plan.teams, plan.family == kFused ? plan.tiling.strips() : 1);
      EXPECT_TRUE(plan.family == kFused || plan.teams * plan.team <= device.resident);
      EXPECT_LE(cuda::stash_bytes(plan.tiling, cut.element_bytes, inputs) +
                    cuda::scratch_bytes(plan.tiling, cut.element_bytes),
                device.shared_bytes);
      for (int64_t c = 0; c < cut.shape.c; ++c) ASSERT_EQ(plan.tiling.strips_of(c), 1);
      check(plan.tiling);
    }
  }
}

/// Where one thread writes a byte of a bitmask, the vectors of that byte are side by side in a warp, and in memory from
/// the byte's first bit on; all of them exist, or none.
TEST_P(TilingTest, BytesOfAMaskBelongToNeighbours) {
  const Cut& cut = GetParam();
  const Problem problem{cut.shape, cut.element_bytes, cut.aligned, true};
  for (const Device& device : {kH200, kA100, kSmall, kGridAlone}) {
    for (const Tiling& tiling : {cuda::plan_stream(problem, device), cuda::plan_whole(problem, 1, device).tiling}) {
      if (!cuda::mask_by_bytes(tiling)) continue;
      const int32_t lanes = 8 / tiling.vector;
      ASSERT_EQ(tiling.lanes_x % lanes, 0);
      for (int64_t index = 0; index < tiling.tiles(); ++index) {
        const Tile tile = tiling.tile(index % tiling.strips(), index / tiling.strips());
        for (int64_t row = tile.r0; row < tile.r1; ++row) {
          for (int64_t x = 0; x < tiling.lanes_x; x += lanes) check_byte(tiling, tile.strip, row, x, lanes);
        }
      }
    }
  }
}

/// The shapes of most networks: no zeros have to be written first, no bits joined in memory. And in the same family as
/// without a mask.
TEST(Plan, MasksAreWrittenByTheByte) {
  for (const int32_t bytes : {2, 4}) {
    for (const Shape& shape : {images(32, 64, 56 * 56), images(32, 256, 14 * 14), images(32, 2048, 7 * 7),
                               rows(32, 64, 56 * 56), rows(32, 2048, 7 * 7), rows(64, 512)}) {
      const Problem problem{shape, bytes, true, true};
      const LaunchPlan plan = cuda::plan_whole(problem, 1, kH200);
      EXPECT_TRUE(cuda::mask_by_bytes(plan.tiling)) << shape.c << " x " << shape.s;
      EXPECT_TRUE(cuda::mask_by_bytes(cuda::plan_stream(problem, kH200))) << shape.c << " x " << shape.s;
      EXPECT_EQ(plan.family, cuda::plan_whole({shape, bytes, true}, 1, kH200).family) << shape.c << " x " << shape.s;
    }
  }
  EXPECT_FALSE(cuda::mask_by_bytes(cuda::plan_stream({images(2, 3, 25), 4, true}, kH200)));
  EXPECT_FALSE(cuda::mask_by_bytes(cuda::plan_stream({images(3, 3, 20), 4, true}, kH200)));
}

std::vector<Cut> cuts() {
  std::vector<Cut> all;
  for (const Shape& shape : {images(2, 3, 25),     images(32, 64, 49),  images(5, 8, 196),   images(4, 6, 784),
                             images(3, 5, 3136),   images(2, 3, 16384), images(2, 3, 20001), images(1, 1, 300007),
                             images(1, 1, 5),      images(3, 7, 31),    images(1000, 3, 2),  images(2, 5000, 7),
                             images(3, 1, 600000), rows(37, 13),        rows(64, 32),        rows(1000, 64),
                             rows(2, 9001),        rows(3000, 70),      rows(5, 1023, 7),    rows(1, 2, 3),
                             rows(40, 2048),       rows(700, 1),        rows(1, 1)}) {
    for (const int32_t bytes : {2, 4, 8}) {
      all.push_back({shape, bytes, true});
      all.push_back({shape, bytes, false});
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Shapes, TilingTest, testing::ValuesIn(cuts()));

/// Too large to visit: the counts must not overflow.
TEST(Tiling, MoreThan2To31Elements) {
  const int64_t many = (int64_t{1} << 31) + 16;
  for (const Shape& shape :
       {images(1, 1, many), images(1, 1, many + 1), images(1 << 16, 2, 1 << 15), rows(1 << 22, 1024)}) {
    const Tiling tiling = cuda::plan_stream({shape, 2, true}, kH200);
    int64_t values = 0;
    for (int64_t part = 0; part < tiling.parts_of(0); ++part) values += tiling.values(tiling.tile_of_part(0, part), 0);
    EXPECT_EQ(values, shape.n * shape.s);
    const Tile last = tiling.tile(tiling.strips() - 1, tiling.chunks() - 1);
    EXPECT_EQ(tiling.element(last.strip, last.r1 - 1, 0) / tiling.pitch(), (last.r1 - 1) / tiling.folds);
    EXPECT_LT(tiling.chunk_rows, int64_t{1} << 31);
    EXPECT_LT(tiling.tiles(), int64_t{1} << 31);
  }
}

}  // namespace
