// Runs CUDA kernels on the CPU, for tests: the same kernel text, compiled by a C++ compiler with GS_EMULATE_CUDA defined.
//
// Every CUDA thread is a fiber with a stack of its own, so threads really are in different places of a kernel at the same time.
// One block runs after another. What it is built to find:
//
//   order     Which thread runs next is drawn from a seed (set_schedule). Warps get priorities that change now and then, so some
//             run far ahead of others, as they may on a GPU; the lanes of a warp are not in lockstep either. Seed 0 is plain
//             round robin. A missing barrier shows as a wrong result under some seed.
//   memory    Shared memory holds NaNs when a block starts, and each array ends in guard bytes that are checked when it ends.
//   alignment Accesses to device memory that announce their size (GS_GLOBAL_ACCESS), as a GPU would refuse them.
//   deadlock  Threads that wait at a barrier which can never complete: another thread of the block (or warp) has returned, or
//   waits
//             at a different kind of barrier.
//   barriers  have names (GS_BLOCK_BARRIER, GS_WARP_BARRIER), and one of them can be taken out at run time (remove_barrier),
//   which
//             lets tests see that each of them is needed.
//
// It does not model memory ordering weaker than the program's, timing, or arithmetic beyond IEEE (no fused multiply-add).
#pragma once

#include <math.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#define GS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ((void)(stream), simt::count_launch(__func__), simt::launch(grid, block, shared_bytes, [&] { (kernel)(__VA_ARGS__); }))
#define GS_SHARED(Type, name, count)                                \
  Type* const name = simt::Block::current->shared<Type>(count, [] { \
    static char here;                                               \
    return &here;                                                   \
  }())
#define GS_DYNAMIC_SHARED(name) char* const name = simt::Block::current->dynamic_shared()
#define GS_BLOCK_BARRIER(name) simt::block_barrier(#name)
#define GS_WARP_BARRIER(name) simt::warp_barrier(#name)
#define GS_GLOBAL_ACCESS(pointer, bytes) simt::check_alignment(pointer, bytes)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using std::max;
using std::min;

namespace simt {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 64 << 10;
constexpr size_t kGuard = 64;
constexpr unsigned char kPoison = 0xFF;  // NaN for every floating-point type, -1 for every integer
constexpr unsigned char kGuardByte = 0xA5;

// --- settings ---

inline unsigned schedule_seed = 0;
inline std::string removed_barrier;

inline void set_schedule(unsigned seed) { schedule_seed = seed; }
inline void remove_barrier(const char* name) { removed_barrier = name; }

// --- threads ---

enum class Wait : uint8_t { none, block, warp, shuffle, done };

struct Thread {
  dim3 index;
  unsigned number = 0;
  Wait wait = Wait::none;
  bool started = false;
  unsigned shuffles = 0;
  uint64_t exchange[2] = {};  // two, so that the next shuffle may begin before the last lane has read this one
  std::unique_ptr<char[]> stack;
  ucontext_t start;
  jmp_buf state;
};

// Which of the threads that can run does so next.
class Scheduler {
 public:
  explicit Scheduler(unsigned seed) : shuffled_(seed != 0), random_(seed) {}

  void reset(unsigned threads) {
    ready_.clear();
    for (unsigned t = 0; t < threads; ++t) ready_.push_back(t);
    priority_.assign((threads + kWarp - 1) / kWarp, 0);
    for (unsigned& p : priority_) p = draw(1000);
  }

  bool empty() const { return ready_.empty(); }
  void add(unsigned thread) { ready_.push_back(thread); }
  unsigned draw(unsigned bound) { return shuffled_ ? unsigned(random_() % bound) : 0; }

  unsigned next() {
    if (shuffled_) {
      if (draw(256) == 0) priority_[draw(unsigned(priority_.size()))] = draw(1000);
      // The best of a few at random: mostly warps of high priority, sometimes any other.
      size_t best = draw(unsigned(ready_.size()));
      for (int tries = 0; tries < 3; ++tries) {
        const size_t other = draw(unsigned(ready_.size()));
        if (priority_[ready_[other] / kWarp] > priority_[ready_[best] / kWarp]) best = other;
      }
      std::swap(ready_.front(), ready_[best]);
    }
    const unsigned thread = ready_.front();
    ready_.pop_front();
    return thread;
  }

 private:
  bool shuffled_;
  std::mt19937 random_;
  std::deque<unsigned> ready_;
  std::vector<unsigned> priority_;  // of each warp
};

// The block that is running.
class Block {
 public:
  static inline thread_local Block* current = nullptr;
  dim3 index, size, grid;
  Thread* thread = nullptr;

  Block(dim3 grid_, dim3 size_, size_t dynamic_bytes, const std::function<void()>& body)
      : size(size_), grid(grid_), body_(body), scheduler_(schedule_seed), dynamic_bytes_(dynamic_bytes) {
    const unsigned count = size.x * size.y * size.z;
    auto& pool = threads();
    while (pool.size() < count) {
      pool.push_back(std::make_unique<Thread>());
      pool.back()->stack.reset(new char[kStack]);
    }
    count_ = count;
  }

  void run(dim3 index_) {
    index = index_;
    arrays_.clear();
    dynamic_ = allocate(dynamic_bytes_);
    live_ = count_;
    waiting_ = 0;
    warp_live_.assign((count_ + kWarp - 1) / kWarp, 0);
    warp_waiting_.assign(warp_live_.size(), 0);
    for (unsigned t = 0; t < count_; ++t) {
      Thread& it = at(t);
      it.number = t;
      it.index = dim3(t % size.x, t / size.x % size.y, t / (size.x * size.y));
      it.wait = Wait::none;
      it.started = false;
      it.shuffles = 0;
      ++warp_live_[t / kWarp];
    }
    scheduler_.reset(count_);
    while (live_ > 0) {
      if (scheduler_.empty()) release_block();
      thread = &at(scheduler_.next());
      resume(*thread);
      if (failure_) std::rethrow_exception(failure_);
      arrive(*thread);
    }
    for (const auto& array : arrays_)
      for (size_t k = 0; k < kGuard; ++k)
        if (array.bytes.get()[array.size + k] != kGuardByte)
          throw std::runtime_error("simt: write past the end of shared memory");
  }

  // The running thread gives way until what it waits for has happened.
  void suspend(Wait wait) {
    thread->wait = wait;
    if (_setjmp(thread->state) == 0) _longjmp(scheduler_state_, 1);
  }

  template <class Type>
  Type* shared(size_t count, const void* where) {
    for (const auto& array : arrays_)
      if (array.where == where) return reinterpret_cast<Type*>(array.bytes.get());
    return reinterpret_cast<Type*>(allocate(count * sizeof(Type), where));
  }

  char* dynamic_shared() const { return dynamic_; }

  const Thread& lane(unsigned lane) const { return at(thread->number / kWarp * kWarp + lane); }

 private:
  struct Free {
    void operator()(unsigned char* bytes) const { ::free(bytes); }
  };
  struct Array {
    const void* where;
    std::unique_ptr<unsigned char, Free> bytes;
    size_t size;
  };

  static std::vector<std::unique_ptr<Thread>>& threads() {
    static thread_local std::vector<std::unique_ptr<Thread>> pool;
    return pool;
  }
  static Thread& at(unsigned number) { return *threads()[number]; }

  char* allocate(size_t size, const void* where = nullptr) {
    const size_t rounded = (size + kGuard + 127) / 128 * 128;
    Array array{where, std::unique_ptr<unsigned char, Free>(static_cast<unsigned char*>(aligned_alloc(128, rounded))), size};
    std::memset(array.bytes.get(), kPoison, size);
    std::memset(array.bytes.get() + size, kGuardByte, kGuard);
    arrays_.push_back(std::move(array));
    return reinterpret_cast<char*>(arrays_.back().bytes.get());
  }

  static void enter() {
    try {
      current->body_();
    } catch (...) {  // cannot leave the fiber: run() throws it again
      current->failure_ = std::current_exception();
    }
    current->thread->wait = Wait::done;
    _longjmp(current->scheduler_state_, 1);
  }

  // Contexts start a fiber; between fibers, _setjmp and _longjmp do without the system calls of swapcontext.
  __attribute__((noinline)) void resume(Thread& it) {
    it.wait = Wait::none;
    if (_setjmp(scheduler_state_) != 0) return;
    if (it.started) _longjmp(it.state, 1);
    it.started = true;
    getcontext(&it.start);
    it.start.uc_stack.ss_sp = it.stack.get();
    it.start.uc_stack.ss_size = kStack;
    it.start.uc_link = nullptr;
    makecontext(&it.start, enter, 0);
    setcontext(&it.start);
  }

  void arrive(const Thread& it) {
    const unsigned warp = it.number / kWarp;
    switch (it.wait) {
      case Wait::done:
        --live_;
        --warp_live_[warp];
        break;
      case Wait::block:
        ++waiting_;
        break;
      case Wait::warp:
      case Wait::shuffle:
        ++warp_waiting_[warp];
        release_warp(warp);
        break;
      case Wait::none:
        break;
    }
  }

  void release_warp(unsigned warp) {
    const unsigned first = warp * kWarp, last = std::min(first + kWarp, count_);
    if (warp_waiting_[warp] < last - first) return;
    for (unsigned t = first; t < last; ++t) {
      if (at(t).wait != at(first).wait) throw std::runtime_error("simt: lanes of a warp wait at different kinds of barriers");
      scheduler_.add(t);
    }
    warp_waiting_[warp] = 0;
  }

  // Nobody can run: either all wait at the block's barrier, or nobody ever will.
  void release_block() {
    if (waiting_ < count_) throw std::runtime_error("simt: deadlock: a barrier that not every thread reaches");
    for (unsigned t = 0; t < count_; ++t) scheduler_.add(t);
    waiting_ = 0;
  }

  const std::function<void()>& body_;
  Scheduler scheduler_;
  size_t dynamic_bytes_;
  char* dynamic_ = nullptr;
  std::vector<Array> arrays_;
  unsigned count_ = 0, live_ = 0, waiting_ = 0;
  std::vector<unsigned> warp_live_, warp_waiting_;
  jmp_buf scheduler_state_;
  std::exception_ptr failure_;
};

inline void launch(dim3 grid, dim3 size, size_t dynamic_bytes, const std::function<void()>& body) {
  if (grid.x * grid.y * grid.z == 0 || size.x * size.y * size.z == 0 || size.x * size.y * size.z > 1024)
    throw std::runtime_error("simt: invalid launch");
  if (dynamic_bytes > 48 * 1024) throw std::runtime_error("simt: more dynamic shared memory than a launch gets without asking");
  Block block(grid, size, dynamic_bytes, body);
  Block::current = &block;
  std::vector<unsigned> order(grid.x * grid.y * grid.z);
  for (unsigned k = 0; k < order.size(); ++k) order[k] = k;
  if (schedule_seed != 0) std::shuffle(order.begin(), order.end(), std::mt19937(schedule_seed));
  for (unsigned k : order) block.run(dim3(k % grid.x, k / grid.x % grid.y, k / (grid.x * grid.y)));
  Block::current = nullptr;
}

inline bool removed(const char* name) { return !removed_barrier.empty() && removed_barrier == name; }

inline void block_barrier(const char* name) {
  if (!removed(name)) Block::current->suspend(Wait::block);
}

inline void warp_barrier(const char* name) {
  if (!removed(name)) Block::current->suspend(Wait::warp);
}

inline void check_alignment(const void* pointer, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) throw std::runtime_error("simt: misaligned access");
}

template <class T>
T shuffle_from(T value, unsigned lane) {
  static_assert(sizeof(T) <= 8, "");
  Block& block = *Block::current;
  uint64_t* const mine = &block.thread->exchange[block.thread->shuffles % 2];
  std::memcpy(mine, &value, sizeof value);
  block.suspend(Wait::shuffle);
  T result;
  std::memcpy(&result, &block.lane(lane).exchange[block.thread->shuffles % 2], sizeof result);
  ++block.thread->shuffles;
  return result;
}

}  // namespace simt

#define threadIdx (simt::Block::current->thread->index)
#define blockIdx (simt::Block::current->index)
#define blockDim (simt::Block::current->size)
#define gridDim (simt::Block::current->grid)

// All 32 lanes take part; the kernels here use no other mask.
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  if (mask != 0xFFFFFFFFu) throw std::runtime_error("simt: partial masks are not emulated");
  return simt::shuffle_from(value, simt::Block::current->thread->number % simt::kWarp ^ unsigned(lanes));
}
