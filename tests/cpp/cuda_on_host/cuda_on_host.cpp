// Threads of a GPU as fibers, switched only at barriers and shuffles. A switch is a pair of _setjmp and _longjmp;
// ucontext makes the stacks.
#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
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
constexpr size_t kDefaultSharedBytes = 48 << 10;
constexpr unsigned kMultiprocessors = 6;  // as cudaDeviceGetAttribute says
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

struct Copy {
  void* to;
  const void* from;
};

struct Fiber {
  unsigned thread;
  Block* block;
  std::deque<std::vector<Copy>> copies;  // by group; the last one is not yet committed
  bool started = false;
  bool done = false;
  jmp_buf context;
};

std::mutex mutex;  // one launch at a time
std::map<const void*, size_t> allowed_shared;
std::vector<std::unique_ptr<char[]>> stacks;
std::unique_ptr<unsigned char[]> shared;
std::vector<Block> blocks;  // of the cluster that runs, or of the cooperative grid
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
    for (unsigned t = 0; t < threads; ++t) fibers.push_back({t, &blocks[b], {{}}, false, false, {}});
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

void allow_shared(const void* kernel, int bytes) {
  const std::lock_guard<std::mutex> lock(mutex);
  allowed_shared[kernel] = static_cast<size_t>(bytes);
}

void run(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(mutex);
  const bool cooperative = config.numAttrs == 1 && config.attrs->id == cudaLaunchAttributeCooperative;
  const unsigned cluster = cooperative ? config.gridDim.x : config.numAttrs == 1 ? config.attrs->val.clusterDim.x : 1;
  const auto allowed = allowed_shared.find(kernel);
  const size_t most = allowed == allowed_shared.end() ? kDefaultSharedBytes : allowed->second;
  if (config.gridDim.x == 0 || config.gridDim.x % cluster != 0 || config.blockDim.x > 1024 ||
      config.dynamicSmemBytes > most || cluster > (cooperative ? kMultiprocessors : 8)) {
    std::fprintf(stderr, "cuda_on_host: no GPU takes %u blocks, %u at once, of %u threads and %zu bytes\n",
                 config.gridDim.x, cluster, config.blockDim.x, config.dynamicSmemBytes);
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

void sync_grid() { sync_cluster(); }

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

void copy_16_bytes_later(void* to, const void* from) { current->copies.back().push_back({to, from}); }

void commit_copies() { current->copies.emplace_back(); }

void wait_for_copies(int behind) {
  while (current->copies.size() > static_cast<size_t>(behind) + 1) {
    for (const Copy& copy : current->copies.front()) std::memcpy(copy.to, copy.from, 16);
    current->copies.pop_front();
  }
}

unsigned char* shared_memory() { return current->block->shared; }

ptrdiff_t shared_memory_offset(int rank) { return blocks[static_cast<size_t>(rank)].shared - current->block->shared; }

}  // namespace cuda_on_host
