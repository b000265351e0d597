// Memory that runs out in the middle of an operator: the first, second, third ... allocation of a call fails, until a
// call needs no more. Each failure must reach the caller as an exception, and leave the state as it was.
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "my_ops/ops.h"

namespace {

/// Allocations of at least `smallest` bytes that succeed before one fails; negative: all succeed.
std::atomic<int64_t> remaining{-1};
std::atomic<size_t> smallest{0};

bool fails(size_t size) { return size >= smallest && remaining >= 0 && remaining.fetch_sub(1) == 0; }

}  // namespace

// The program's own, for all libraries in it: tensors come from posix_memalign, all else from operator new.
extern "C" int posix_memalign(void** memory, size_t alignment, size_t size) {
  if (fails(size)) return ENOMEM;
  *memory = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  return *memory ? 0 : ENOMEM;
}
void* operator new(size_t size) {
  void* memory = fails(size) ? nullptr : std::malloc(size);
  return memory ? memory : throw std::bad_alloc();
}
void* operator new(size_t size, const std::nothrow_t&) noexcept { return fails(size) ? nullptr : std::malloc(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }

namespace {

using at::Tensor;
namespace ops = my_ops::ops;

std::string bytes_of(const Tensor& tensor) {
  const Tensor dense = tensor.contiguous();
  return {static_cast<const char*>(dense.const_data_ptr()), dense.nbytes()};
}

/// What operators change: running statistics of two dtypes, one of them not dense, and the counter.
struct State {
  Tensor mean = at::zeros({kChannels}, at::kBFloat16);
  Tensor var = at::ones({kChannels, 2}).select(1, 0);
  Tensor count = at::zeros({}, at::kLong);

  static constexpr int64_t kChannels = 96;
  std::vector<std::string> bytes() const { return {bytes_of(mean), bytes_of(var), bytes_of(count)}; }
};

struct Case {
  std::string name;
  std::function<void(State&)> call;
  bool counts = true;
  size_t smallest = 0;  // failures of less are not tried
};

Tensor image() { return at::randn({4, State::kChannels, 5, 7}, at::kBFloat16); }

std::vector<Case> cases() {
  const Tensor x = image();
  const Tensor parts = at::ones({2, State::kChannels});
  const Tensor counts = at::full({2}, 10, at::kLong);
  return {
      {"forward",
       [=](State& s) {
         ops::batchnorm_forward(x, std::nullopt, std::nullopt, s.mean, s.var, true, std::nullopt, 1e-5, s.count);
       }},
      {"forward_with_graph",
       [=](State& s) {
         const Tensor leaf = x.detach().requires_grad_();
         ops::batchnorm_forward(leaf, std::nullopt, std::nullopt, s.mean, s.var, true, std::nullopt, 1e-5, s.count);
       },
       true, 256},
      {"forward_out",
       [=](State& s) {
         Tensor y = at::zeros({4, State::kChannels, 7, 5}, at::kBFloat16).transpose(2, 3);
         Tensor mean = at::zeros({2 * State::kChannels}).slice(0, 0, State::kChannels * 2, 2);
         Tensor invstd = at::zeros({0});
         ops::batchnorm_forward_out(x, std::nullopt, std::nullopt, s.mean, s.var, true, 0.1, 1e-5, s.count, y, mean,
                                    invstd);
       }},
      {"act_forward",
       [=](State& s) {
         ops::batchnorm_act_forward(x, x, std::nullopt, std::nullopt, s.mean, s.var, true, 0.1, 1e-5, "relu", 0,
                                    s.count);
       }},
      {"act_forward_in_place",
       [=](State& s) {
         Tensor over = x.clone();
         ops::batchnorm_act_forward_(over, std::nullopt, std::nullopt, s.mean, s.var, true, 0.1, 1e-5, "elu", 1,
                                     s.count);
       }},
      {"act_forward_in_place_not_dense",
       [=](State& s) {
         Tensor over = x.clone().transpose(2, 3);
         ops::batchnorm_act_forward_(over, std::nullopt, std::nullopt, s.mean, s.var, true, 0.1, 1e-5, "identity", 1,
                                     s.count);
       }},
      {"gather_stats",
       [=](State& s) {
         ops::batchnorm_gather_stats(parts, parts, counts, s.mean, s.var, std::nullopt, 1e-5, s.count);
       }},
      {"instancenorm_forward",
       [=](State& s) { ops::instancenorm_forward(x, std::nullopt, std::nullopt, s.mean, s.var, 0.1, 1e-5); }, false},
  };
}

void PrintTo(const Case& tried, std::ostream* out) { *out << tried.name; }

class OutOfMemory : public testing::TestWithParam<Case> {};

TEST_P(OutOfMemory, LeavesTheStateAsItWas) {
  const Case& tried = GetParam();
  State done;
  tried.call(done);
  State state;
  const auto before = state.bytes();
  smallest = tried.smallest;
  int64_t failures = 0;
  for (bool failed = true; failed; ++failures) {
    ASSERT_LT(failures, 10000);
    failed = false;
    std::string message;
    remaining = failures;
    try {
      tried.call(state);
      failed = remaining < 0;  // somebody managed without
    } catch (const std::exception& error) {
      failed = true;
      message = error.what();
    }
    remaining = -1;
    if (!message.empty()) {
      ASSERT_TRUE(state.bytes() == before) << "changed although allocation " << failures << " failed: " << message;
    } else if (failed) {
      state = State();
    }
  }
  std::cout << "    " << failures - 1 << " allocations\n";
  EXPECT_GT(failures, 1);
  EXPECT_EQ(state.count.item<int64_t>(), tried.counts ? 1 : 0);
  EXPECT_TRUE(state.bytes() == done.bytes());
}

INSTANTIATE_TEST_SUITE_P(Operators, OutOfMemory, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

TEST(OutOfMemory, SaysHowMuchWasWanted) {
  const Tensor x = at::randn({2, 100000});
  Tensor invstd = at::ones({100000});
  Tensor out = at::zeros({2, 100000});
  smallest = 100000 * sizeof(float);
  remaining = 2;  // after gamma's ones and beta's zeros
  try {
    ops::batchnorm_apply_out(x, std::nullopt, std::nullopt, invstd, invstd, out);
    FAIL() << "nothing failed";
  } catch (const c10::Error& error) {
    EXPECT_STREQ(error.what_without_backtrace(),
                 "my_ops: expected 400000 bytes of memory for the length of a call, got none");
  }
  remaining = -1;
}

}  // namespace
