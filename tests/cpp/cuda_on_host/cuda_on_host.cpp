// Threads of a GPU as fibers, switched only at barriers and shuffles. A switch is a pair of _setjmp and _longjmp;
// ucontext makes the stacks.
#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda_runtime.h"

cuda_on_host::Index threadIdx;
cuda_on_host::Index blockIdx;
cuda_on_host::Index blockDim;
cuda_on_host::Index gridDim;

namespace cuda_on_host {
namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kMaxSharedBytes = 227 << 10;
constexpr unsigned kWarp = 32;

struct Barrier {
  unsigned arrived = 0;
  unsigned generation = 0;
};

struct Warp {
  uint64_t values[kWarp];
  std::map<uint32_t, Barrier> barriers;  // one per mask of lanes
};

struct Block {
  unsigned index;
  Barrier barrier;
  std::vector<Warp> warps;
  unsigned char* shared;
};

struct Fiber {
  unsigned thread;
  Block* block;
  bool started = false;
  bool done = false;
  jmp_buf context;
};

std::mutex mutex;  // one launch at a time
std::vector<std::unique_ptr<char[]>> stacks;
std::unique_ptr<unsigned char[]> shared;
std::vector<Block> blocks;  // of the cluster that runs
std::vector<Fiber> fibers;  // "
Barrier cluster_barrier;
Fiber* current = nullptr;
jmp_buf scheduler;
bool progress = false;
bool reversed = false;
const std::function<void()>* body = nullptr;

void yield() {
  if (_setjmp(current->context) == 0) _longjmp(scheduler, 1);
}

void wait(Barrier& barrier, unsigned expected) {
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    progress = true;
    return;
  }
  const unsigned generation = barrier.generation;
  while (barrier.generation == generation) yield();
}

void fiber_main() {
  (*body)();
  current->done = true;
  progress = true;
  _longjmp(scheduler, 1);
}

void resume(Fiber& fiber, char* stack) {
  current = &fiber;
  threadIdx.x = fiber.thread;
  blockIdx.x = fiber.block->index;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.context, 1);
  fiber.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, fiber_main, 0);
  setcontext(&context);
}

void make_cluster(unsigned first_block, unsigned count, unsigned threads, size_t shared_bytes) {
  if (shared_bytes > kMaxSharedBytes) {
    std::fprintf(stderr, "cuda_on_host: %zu bytes of shared memory, more than a GPU has\n", shared_bytes);
    std::abort();
  }
  // Exactly as much as asked for: what lies behind it belongs to the next block, or to nobody.
  shared = std::make_unique<unsigned char[]>(count * (shared_bytes + 64));
  std::memset(shared.get(), 0xff, count * (shared_bytes + 64));
  const auto base = (reinterpret_cast<uintptr_t>(shared.get()) + 15) / 16 * 16;
  blocks.assign(count, {});
  fibers.clear();
  cluster_barrier = {};
  for (unsigned b = 0; b < count; ++b) {
    blocks[b].index = first_block + b;
    blocks[b].warps.resize((threads + kWarp - 1) / kWarp);
    blocks[b].shared = reinterpret_cast<unsigned char*>(base) + b * ((shared_bytes + 15) / 16 * 16);
    for (unsigned t = 0; t < threads; ++t) fibers.push_back({t, &blocks[b], false, false, {}});
  }
  while (stacks.size() < fibers.size()) stacks.emplace_back(new char[kStackBytes]);
}

void run_cluster() {
  size_t left = fibers.size();
  while (left > 0) {
    progress = false;
    for (size_t i = 0; i < fibers.size(); ++i) {
      const size_t at = reversed ? fibers.size() - 1 - i : i;
      if (fibers[at].done) continue;
      resume(fibers[at], stacks[at].get());
      left -= fibers[at].done;
    }
    if (!progress) {
      std::fprintf(stderr, "cuda_on_host: threads wait for each other at different barriers\n");
      std::abort();
    }
  }
}

}  // namespace

void run(const cudaLaunchConfig_t& config, unsigned cluster, const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (config.gridDim.x == 0 || config.gridDim.x % cluster != 0 || config.blockDim.x > 1024) {
    std::fprintf(stderr, "cuda_on_host: a grid of %u blocks, %u threads, cluster %u\n", config.gridDim.x,
                 config.blockDim.x, cluster);
    std::abort();
  }
  body = &thread;
  reversed = !reversed;
  blockDim.x = config.blockDim.x;
  gridDim.x = config.gridDim.x;
  for (unsigned first = 0; first < config.gridDim.x; first += cluster) {
    make_cluster(first, cluster, config.blockDim.x, config.dynamicSmemBytes);
    run_cluster();
  }
}

void sync_block() { wait(current->block->barrier, blockDim.x); }

void sync_cluster() { wait(cluster_barrier, static_cast<unsigned>(fibers.size())); }

uint64_t exchange(uint32_t mask, uint64_t value, int distance) {
  const unsigned lane = current->thread % kWarp;
  Warp& warp = current->block->warps[current->thread / kWarp];
  Barrier& barrier = warp.barriers[mask];
  const auto lanes = static_cast<unsigned>(__builtin_popcount(mask));
  warp.values[lane] = value;
  wait(barrier, lanes);
  const uint64_t result = warp.values[lane ^ static_cast<unsigned>(distance)];
  wait(barrier, lanes);
  return result;
}

unsigned char* shared_memory() { return current->block->shared; }

ptrdiff_t shared_memory_offset(int rank) { return blocks[static_cast<size_t>(rank)].shared - current->block->shared; }

}  // namespace cuda_on_host
