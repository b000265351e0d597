// Operators called by many threads at once, from inside parallel regions, and under changing numbers of threads.
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cpu/schedule.h"
#include "my_ops/ops.h"
#include "plan/partition.h"

namespace {

using at::Tensor;
using my_ops::plan::Layout;
using my_ops::plan::Partition;
using my_ops::plan::Region;
namespace cpu = my_ops::cpu;
namespace ops = my_ops::ops;

constexpr int kThreads = 8;
constexpr int kCalls = 20;

/// The state of a layer; `x` is large enough for several threads of its own.
struct Layer {
  Tensor x = at::randn({8, 64, 16, 16});
  Tensor gamma = at::randn({64});
  Tensor beta = at::randn({64});
  Tensor mean = at::randn({64});
  Tensor var = at::rand({64}).add(0.5);
  Tensor count = at::zeros({}, at::kLong);

  Tensor forward(bool training) {
    return std::get<0>(ops::batchnorm_forward(x, gamma, beta, mean, var, training, 0.1, 1e-5, count));
  }

  /// Output and both gradients of a step in eval or in training.
  std::vector<Tensor> step(bool training) const {
    auto [y, mean, invstd] =
        ops::batchnorm_forward(x, gamma, beta, training ? std::nullopt : ops::OptionalTensor(this->mean),
                               training ? std::nullopt : ops::OptionalTensor(var), training, 0.1, 1e-5);
    auto [dx, dgamma, dbeta] = ops::batchnorm_backward(y, x, gamma, mean, invstd, training);
    return {y, dx, dgamma, dbeta};
  }
};

bool same_bits(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!at::equal(a[i], b[i])) return false;
  }
  return true;
}

/// body(thread) on 8 threads.
template <class Body>
void on_threads(Body body) {
  std::vector<std::thread> crew;
  for (int number = 0; number < kThreads; ++number) crew.emplace_back([=] { body(number); });
  for (std::thread& worker : crew) worker.join();
}

class Threads : public testing::Test {
 protected:
  void SetUp() override { at::set_num_threads(4); }
};

TEST_F(Threads, ShareALayer) {
  const Layer layer;
  const auto eval = layer.step(false);
  const auto training = layer.step(true);
  std::atomic<int> wrong = 0;
  on_threads([&](int number) {
    at::set_num_threads(1 + number % 3);
    for (int call = 0; call < kCalls; ++call) {
      const bool train = (number + call) % 2;
      if (!same_bits(layer.step(train), train ? training : eval)) ++wrong;
    }
  });
  EXPECT_EQ(wrong, 0);
}

TEST_F(Threads, TrainALayerEach) {
  std::vector<Layer> layers(kThreads);
  std::vector<Layer> alone(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    alone[i] = {layers[i].x,           layers[i].gamma,         layers[i].beta, layers[i].mean.clone(),
                layers[i].var.clone(), at::zeros({}, at::kLong)};
    for (int call = 0; call < kCalls; ++call) alone[i].forward(true);
  }
  on_threads([&](int number) {
    for (int call = 0; call < kCalls; ++call) layers[number].forward(true);
  });
  for (int i = 0; i < kThreads; ++i) {
    EXPECT_TRUE(at::equal(layers[i].mean, alone[i].mean)) << i;
    EXPECT_TRUE(at::equal(layers[i].var, alone[i].var)) << i;
    EXPECT_EQ(layers[i].count.item<int64_t>(), kCalls) << i;
  }
}

// The bits of a mask that meet within a byte are joined by several threads.
TEST_F(Threads, JoinAMask) {
  const Tensor x = at::randn({33, 3, 37, 37});
  const Tensor residual = at::randn(x.sizes());
  const auto call = [&] {
    return ops::batchnorm_act_forward(x, residual, std::nullopt, std::nullopt, std::nullopt, std::nullopt, true, 0.1,
                                      1e-5, "relu", 0, std::nullopt);
  };
  at::set_num_threads(1);
  const auto [y, mean, invstd, mask] = call();
  for (const int threads : {2, 3, 4}) {
    at::set_num_threads(threads);
    EXPECT_TRUE(at::equal(std::get<3>(call()), mask)) << threads;
  }
}

TEST_F(Threads, CallFromParallelRegions) {
  const Layer layer;
  const auto eval = layer.step(false);
  const auto training = layer.step(true);
  std::atomic<int> wrong = 0;
  at::parallel_for(0, 2 * kThreads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (!same_bits(layer.step(i % 2), i % 2 ? training : eval)) ++wrong;
    }
  });
  EXPECT_EQ(wrong, 0);
}

/// Groups of 16 channels in 4 chunks: work for 4 threads, by group and (with 3 of them) by phase.
const Partition kPartition{64, 4096, 16, 1024};

template <class Run>
void expect_to_throw(Run run) {
  for (const int threads : {1, 2, 3, 4}) {
    at::set_num_threads(threads);
    try {
      run();
      ADD_FAILURE() << "nothing was thrown with " << threads << " threads";
    } catch (const std::out_of_range& error) {
      EXPECT_STREQ(error.what(), "here");
    }
  }
}

TEST_F(Threads, ExceptionsOfEveryPhaseReachTheCaller) {
  const auto nothing = [](auto...) {};
  const auto last_region = [](const Region& region, auto...) {
    if (region.c1 == kPartition.channels) throw std::out_of_range("here");
  };
  const auto last_channel = [](int64_t, int64_t c1) {
    if (c1 == kPartition.channels) throw std::out_of_range("here");
  };
  expect_to_throw([&] { cpu::for_regions(kPartition, cpu::Order::backwards, last_region); });
  expect_to_throw([&] { cpu::reduce_and_map(kPartition, last_region, nothing, nothing); });
  expect_to_throw([&] { cpu::reduce_and_map(kPartition, nothing, last_channel, nothing); });
  expect_to_throw([&] { cpu::reduce_and_map(kPartition, nothing, nothing, last_region); });
}

TEST_F(Threads, WorkAfterAnException) {
  const Layer layer;
  const auto before = layer.step(true);
  expect_to_throw([&] {
    cpu::for_regions(kPartition, cpu::Order::forwards, [](const Region& region, int64_t) {
      if (region.c0 == 0) throw std::out_of_range("here");
    });
  });
  EXPECT_TRUE(same_bits(layer.step(true), before));
}

}  // namespace
