// Runs CUDA kernels on the CPU, for tests: the same kernel text, compiled by a C++ compiler with GS_EMULATE_CUDA defined.
//
// Every CUDA thread is a fiber with a stack of its own, so threads really are in different places of a kernel at the same time.
// One block runs after another; those of a cooperative launch are all alive at once, and their threads run in one order. What it
// is built to find:
//
//   order     Which thread runs next is drawn from a seed (set_schedule). Warps get priorities that change now and then, so some
//             run far ahead of others, as they may on a GPU; the lanes of a warp are not in lockstep either. Seed 0 is plain
//             round robin. A missing barrier shows as a wrong result under some seed.
//   memory    Shared memory holds NaNs when a block starts, and each array ends in guard bytes that are checked when it ends.
//   alignment Accesses to device memory that announce their size (GS_GLOBAL_ACCESS), as a GPU would refuse them.
//   deadlock  Threads that wait at a barrier which can never complete: another thread of the grid, block or warp has returned, or
//             waits at a different kind of barrier.
//   barriers  have names (GS_GRID_BARRIER, GS_BLOCK_BARRIER, GS_WARP_BARRIER), and one of them can be taken out at run time
//             (remove_barrier), which lets tests see that each of them is needed.
//   launches  that a device refuses: more shared memory than asked for, or a cooperative launch of more blocks than fit
//   (device.h).
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

#include "device.h"
#include "runtime.h"
#include "schedule.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

#define GS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ((void)(stream), simt::count_launch(__func__),                  \
   simt::launch(simt::address_of(kernel), grid, block, shared_bytes, [&] { (kernel)(__VA_ARGS__); }))
#define GS_LAUNCH_COOPERATIVE(kernel, grid, block, shared_bytes, stream, ...) \
  ((void)(stream), simt::count_launch(__func__),                              \
   simt::launch_cooperative(simt::address_of(kernel), grid, block, shared_bytes, [&] { (kernel)(__VA_ARGS__); }))
#define GS_SHARED(Type, name, count)                                \
  Type* const name = simt::Block::current->shared<Type>(count, [] { \
    static char here;                                               \
    return &here;                                                   \
  }())
#define GS_DYNAMIC_SHARED(name) char* const name = simt::Block::current->dynamic_shared()
#define GS_GRID_BARRIER(name) simt::barrier(simt::Wait::grid, #name)
#define GS_BLOCK_BARRIER(name) simt::barrier(simt::Wait::block, #name)
#define GS_WARP_BARRIER(name) simt::barrier(simt::Wait::warp, #name)
#define GS_GLOBAL_ACCESS(pointer, bytes) simt::access(pointer, bytes)

using std::max;
using std::min;

namespace simt {

constexpr size_t kGuard = 64;
constexpr unsigned char kPoison = 0xFF;  // NaN for every floating-point type, -1 for every integer
constexpr unsigned char kGuardByte = 0xA5;

// A block that is alive: its shared memory, and how many of its threads wait.
class Block {
 public:
  static inline thread_local Block* current = nullptr;  // of the thread that is running
  dim3 index, size, grid;
  Thread* thread = nullptr;  // the one that is running, when it is of this block
  unsigned waiting = 0;      // at the block's barrier

  Block(dim3 index_, dim3 size_, dim3 grid_, size_t dynamic_bytes) : index(index_), size(size_), grid(grid_) {
    dynamic_ = allocate(dynamic_bytes);
  }

  template <class Type>
  Type* shared(size_t count, const void* where) {
    for (const auto& array : arrays_)
      if (array.where == where) return reinterpret_cast<Type*>(array.bytes.get());
    return reinterpret_cast<Type*>(allocate(count * sizeof(Type), where));
  }

  char* dynamic_shared() const { return dynamic_; }

  size_t shared_bytes() const {
    size_t sum = 0;
    for (const auto& array : arrays_) sum += array.size;
    return sum;
  }

  void check_guards() const {
    for (const auto& array : arrays_)
      for (size_t k = 0; k < kGuard; ++k)
        if (array.bytes.get()[array.size + k] != kGuardByte)
          throw std::runtime_error("simt: write past the end of shared memory");
  }

 private:
  struct Free {
    void operator()(unsigned char* bytes) const { ::free(bytes); }
  };
  struct Array {
    const void* where;
    std::unique_ptr<unsigned char, Free> bytes;
    size_t size;
  };

  char* allocate(size_t size, const void* where = nullptr) {
    const size_t rounded = (size + kGuard + 127) / 128 * 128;
    Array array{where, std::unique_ptr<unsigned char, Free>(static_cast<unsigned char*>(aligned_alloc(128, rounded))), size};
    std::memset(array.bytes.get(), kPoison, size);
    std::memset(array.bytes.get() + size, kGuardByte, kGuard);
    arrays_.push_back(std::move(array));
    return reinterpret_cast<char*>(arrays_.back().bytes.get());
  }

  char* dynamic_ = nullptr;
  std::vector<Array> arrays_;
};

// One launch: runs its blocks, one or more at a time.
class Launch {
 public:
  static inline thread_local Launch* current = nullptr;

  Launch(dim3 grid, dim3 size, size_t dynamic_bytes, const std::function<void()>& body)
      : grid_(grid),
        size_(size),
        dynamic_bytes_(dynamic_bytes),
        body_(body),
        scheduler_(schedule_seed),
        count_(size.x * size.y * size.z),
        warps_((count_ + kWarp - 1) / kWarp) {
    current = this;
  }
  ~Launch() {
    current = nullptr;
    Block::current = nullptr;
  }

  // The blocks of the grid in the order in which they start.
  std::vector<unsigned> order() const {
    std::vector<unsigned> result(grid_.x * grid_.y * grid_.z);
    for (unsigned k = 0; k < result.size(); ++k) result[k] = k;
    if (schedule_seed != 0) std::shuffle(result.begin(), result.end(), std::mt19937(schedule_seed));
    return result;
  }

  // These blocks, all alive until the last of them ends; `together`: they may wait for each other.
  void run(const std::vector<unsigned>& blocks, bool together) {
    start(blocks);
    together_ = together;
    while (live_ > 0) {
      if (scheduler_.empty()) release_grid();
      Thread& it = at(scheduler_.next());
      Block::current = it.block;
      it.block->thread = &it;
      resume(it);
      if (failure_) std::rethrow_exception(failure_);
      arrive(it);
    }
    for (const auto& block : alive_) {
      block->check_guards();
      shared_bytes_ = std::max(shared_bytes_, block->shared_bytes());
    }
  }

  size_t shared_bytes() const { return shared_bytes_; }  // of the block that used most

  // The running thread gives way until what it waits for has happened.
  void suspend(Wait wait) {
    Thread& it = *Block::current->thread;
    it.wait = wait;
    if (_setjmp(it.state) == 0) _longjmp(scheduler_state_, 1);
  }

  static Thread& at(unsigned number) { return *threads()[number]; }

 private:
  static std::vector<std::unique_ptr<Thread>>& threads() {
    static thread_local std::vector<std::unique_ptr<Thread>> pool;
    return pool;
  }

  void start(const std::vector<unsigned>& blocks) {
    const unsigned warps = unsigned(blocks.size()) * warps_;
    auto& pool = threads();
    while (pool.size() < warps * kWarp) {
      pool.push_back(std::make_unique<Thread>());
      pool.back()->stack.reset(new char[kStack]);
    }
    alive_.clear();
    scheduler_.reset(warps);
    warp_waiting_.assign(warps, 0);
    waiting_ = 0;
    live_ = 0;
    for (const unsigned k : blocks) {
      const dim3 index(k % grid_.x, k / grid_.x % grid_.y, k / (grid_.x * grid_.y));
      alive_.push_back(std::make_unique<Block>(index, size_, grid_, dynamic_bytes_));
      for (unsigned t = 0; t < count_; ++t, ++live_) {
        const unsigned number = first_of(alive_.size() - 1) + t;
        Thread& it = at(number);
        it.block = alive_.back().get();
        it.number = number;
        it.index = dim3(t % size_.x, t / size_.x % size_.y, t / (size_.x * size_.y));
        it.wait = Wait::none;
        it.started = false;
        it.shuffles = 0;
        scheduler_.add(number);
      }
    }
  }

  unsigned first_of(size_t block) const { return unsigned(block) * warps_ * kWarp; }

  static void enter() {
    try {
      current->body_();
    } catch (...) {  // cannot leave the fiber: run() throws it again
      current->failure_ = std::current_exception();
    }
    Block::current->thread->wait = Wait::done;
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
    switch (it.wait) {
      case Wait::done:
        --live_;
        break;
      case Wait::grid:
        if (!together_) throw std::runtime_error("simt: a barrier of the grid in a launch that is not cooperative");
        ++waiting_;
        break;
      case Wait::block:
        if (++it.block->waiting == count_) release_block(it);
        break;
      case Wait::warp:
      case Wait::shuffle:
        ++warp_waiting_[it.number / kWarp];
        release_warp(it);
        break;
      case Wait::none:
        break;
    }
  }

  void release_warp(const Thread& it) {
    const unsigned first = it.number / kWarp * kWarp, block = first_of(it.number / (warps_ * kWarp));
    const unsigned last = std::min(first + kWarp, block + count_);
    if (warp_waiting_[first / kWarp] < last - first) return;
    for (unsigned t = first; t < last; ++t) {
      if (at(t).wait != at(first).wait) throw std::runtime_error("simt: lanes of a warp wait at different kinds of barriers");
      scheduler_.add(t);
    }
    warp_waiting_[first / kWarp] = 0;
  }

  void release_block(const Thread& it) {
    const unsigned first = first_of(it.number / (warps_ * kWarp));
    for (unsigned t = first; t < first + count_; ++t) scheduler_.add(t);
    it.block->waiting = 0;
  }

  // Nobody can run: either all wait at the grid's barrier, or nobody ever will.
  void release_grid() {
    if (waiting_ < alive_.size() * count_) throw std::runtime_error("simt: deadlock: a barrier that not every thread reaches");
    for (size_t block = 0; block < alive_.size(); ++block)
      for (unsigned t = 0; t < count_; ++t) scheduler_.add(first_of(block) + t);
    waiting_ = 0;
  }

  dim3 grid_, size_;
  size_t dynamic_bytes_;
  const std::function<void()>& body_;
  Scheduler scheduler_;
  unsigned count_, warps_;  // threads and warps of a block
  bool together_ = false;
  std::vector<std::unique_ptr<Block>> alive_;
  unsigned live_ = 0, waiting_ = 0;     // threads; those that wait for the grid
  std::vector<unsigned> warp_waiting_;  // of each warp that is alive
  size_t shared_bytes_ = 0;
  jmp_buf scheduler_state_;
  std::exception_ptr failure_;
};

inline void check_launch(const void* kernel, dim3 grid, dim3 size, size_t dynamic_bytes) {
  if (grid.x * grid.y * grid.z == 0 || size.x * size.y * size.z == 0 || size.x * size.y * size.z > 1024)
    throw std::runtime_error("simt: invalid launch");
  if (dynamic_bytes > dynamic_shared_limit(kernel))
    throw std::runtime_error("simt: more dynamic shared memory than the kernel may use");
}

inline void launch(const void* kernel, dim3 grid, dim3 size, size_t dynamic_bytes, const std::function<void()>& body) {
  check_launch(kernel, grid, size, dynamic_bytes);
  Launch launch(grid, size, dynamic_bytes, body);
  for (const unsigned k : launch.order()) launch.run({k}, false);
}

inline cudaError_t launch_cooperative(const void* kernel, dim3 grid, dim3 size, size_t dynamic_bytes,
                                      const std::function<void()>& body) {
  check_launch(kernel, grid, size, dynamic_bytes);
  if (!device.cooperative) throw std::runtime_error("simt: this device has no cooperative launches");
  if (grid.x * grid.y * grid.z > unsigned(device.multiprocessors * resident_blocks(dynamic_bytes)))
    throw std::runtime_error("simt: a cooperative launch of more blocks than the device holds at once");
  if (shared_with_others) return cudaErrorCooperativeLaunchTooLarge;
  Launch launch(grid, size, dynamic_bytes, body);
  launch.run(launch.order(), true);
  if (launch.shared_bytes() > dynamic_bytes + device.static_shared)
    throw std::runtime_error("simt: the kernel has more static shared memory than the device's description says");
  return cudaSuccess;
}

inline void barrier(Wait wait, const char* name) {
  static const char* last = nullptr;  // most often it is the same again
  if (name != last) reached.insert(last = name);
  if (removed_barrier.empty() || removed_barrier != name) Launch::current->suspend(wait);
}

inline void access(const void* pointer, size_t bytes) {
  traffic += int64_t(bytes);
  if (reinterpret_cast<uintptr_t>(pointer) % bytes != 0) throw std::runtime_error("simt: misaligned access");
}

template <class T>
T shuffle_from(T value, unsigned lane) {
  static_assert(sizeof(T) <= 8, "");
  Thread& it = *Block::current->thread;
  std::memcpy(&it.exchange[it.shuffles % 2], &value, sizeof value);
  Launch::current->suspend(Wait::shuffle);
  T result;
  std::memcpy(&result, &Launch::at(it.number / kWarp * kWarp + lane).exchange[it.shuffles % 2], sizeof result);
  ++it.shuffles;
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
