// Threads share one model of my_ops, and in turns the same model with torch's batch norm:
//
//   load_test MODEL NATIVE INPUTS CALLS THREADS...
//
// MODEL, NATIVE: TorchScript of one network. INPUTS: a list of tensors by torch.save. For each number of THREADS, CALLS
// calls of each model go through the inputs, in rounds that alternate between the two. The threads share the cores (or
// OMP_NUM_THREADS of them): one thread has all of them for its operators, and the largest throughput of single calls.
//
// Prints a line of JSON per number of threads: images per second of both, bytes in use and bytes resident after the
// first and after the last round, and how many outputs were wrong: not bit for bit what one thread had computed before.
// Fails if any was, or if the bytes in use grow with the number of calls.
//
// It calls nothing of my_ops by name: being linked to my_ops::my_ops is what lets it run the models.
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <malloc.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <iostream>
#include <thread>

#include "files.h"

using Tensors = std::vector<at::Tensor>;
constexpr int64_t kRounds = 10;            // the first one warms up
const int kCores = at::get_num_threads();  // all of them, or OMP_NUM_THREADS
constexpr double kBytesPerCall = 1;
constexpr int64_t kBytesAtAll = 1 << 16;

struct Memory {
  int64_t in_use = 0;    // of the allocator, in all threads
  int64_t resident = 0;  // of the process
};

Memory memory() {
  const struct mallinfo2 info = mallinfo2();
  std::ifstream file("/proc/self/statm");
  int64_t size = 0;
  int64_t resident = 0;
  file >> size >> resident;
  return {static_cast<int64_t>(info.uordblks + info.hblkhd), resident * sysconf(_SC_PAGESIZE)};
}

int cores_of_each(int threads) { return std::max(1, kCores / threads); }

class Load {
 public:
  Load(const std::string& model, const Tensors& inputs) : module_(torch::jit::load(model)), inputs_(inputs) {
    module_.eval();
  }

  // What one thread computes, with as many cores as each of `threads` will have.
  const Tensors& prepare(int threads) {
    const c10::InferenceMode inference;
    at::set_num_threads(cores_of_each(threads));
    wanted_.clear();
    for (const at::Tensor& input : inputs_) wanted_.push_back(run(input));
    return wanted_;
  }

  // Images per second of `threads` threads that share `calls` calls.
  double round(int threads, int64_t calls) {
    std::atomic<int64_t> images = 0;
    const auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> crew;
    for (int number = 0; number < threads; ++number) {
      crew.emplace_back([&, number] { images += work(threads, number, calls); });
    }
    for (std::thread& worker : crew) worker.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
    return static_cast<double>(images) / seconds.count();
  }

  int64_t wrong() const { return wrong_; }

 private:
  at::Tensor run(const at::Tensor& input) { return module_.forward({input}).toTensor(); }

  int64_t work(int threads, int number, int64_t calls) {
    const c10::InferenceMode inference;
    at::set_num_threads(cores_of_each(threads));
    int64_t images = 0;
    for (int64_t call = number; call < calls; call += threads) {
      const size_t which = static_cast<size_t>(call / threads + number) % inputs_.size();
      wrong_ += !run(inputs_[which]).equal(wanted_[which]);
      images += inputs_[which].size(0);
    }
    return images;
  }

  torch::jit::Module module_;
  Tensors inputs_;
  Tensors wanted_;
  std::atomic<int64_t> wrong_ = 0;
};

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// One line of the report; whether all is well.
bool measure(Load& ours, Load& native, int threads, int64_t calls) {
  const Tensors& wanted = ours.prepare(threads);
  const Tensors& natives = native.prepare(threads);
  for (size_t index = 0; index < wanted.size(); ++index) {
    if (!wanted[index].allclose(natives[index], 1e-4, 1e-4)) {
      throw std::runtime_error("the two models differ on input " + std::to_string(index));
    }
  }

  std::array<std::vector<double>, 2> rates;
  Memory first;
  for (int64_t round = 0; round < kRounds; ++round) {
    for (const bool is_native : {round % 2 == 0, round % 2 != 0}) {
      const double rate = (is_native ? native : ours).round(threads, calls / kRounds);
      if (round > 0) rates[is_native].push_back(rate);
    }
    if (round == 0) first = memory();
  }
  const Memory last = memory();
  const int64_t wrong = ours.wrong() + native.wrong();
  std::cout << "{\"threads\": " << threads << ", \"calls\": " << calls / kRounds * kRounds
            << ", \"my_ops_images_per_s\": " << median(rates[0]) << ", \"native_images_per_s\": " << median(rates[1])
            << ", \"bytes_in_use\": [" << first.in_use << ", " << last.in_use << "], \"bytes_resident\": ["
            << first.resident << ", " << last.resident << "], \"wrong\": " << wrong << "}" << std::endl;
  const auto measured_calls = static_cast<double>(2 * (calls - calls / kRounds));
  const int64_t growth = last.in_use - first.in_use;
  return wrong == 0 && (growth < kBytesAtAll || static_cast<double>(growth) < kBytesPerCall * measured_calls);
}

int main(int count, char** arguments) {
  if (count < 6) {
    std::cerr << "load_test MODEL NATIVE INPUTS CALLS THREADS...\n";
    return 2;
  }
  try {
    const Tensors inputs = read_tensors(arguments[3]);
    Load ours(arguments[1], inputs);
    Load native(arguments[2], inputs);
    bool well = true;
    for (int index = 5; index < count; ++index) {
      well &= measure(ours, native, std::stoi(arguments[index]), std::stoll(arguments[4]));
    }
    return well ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << "load_test: " << error.what() << '\n';
    return 1;
  }
}
