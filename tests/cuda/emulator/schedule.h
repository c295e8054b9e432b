// The emulator's threads, and the order in which they run.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace simt {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 64 << 10;

// --- settings ---

inline unsigned schedule_seed = 0;
inline std::string removed_barrier;
inline std::set<std::string> reached;  // the names of the barriers that threads have come to

inline void set_schedule(unsigned seed) { schedule_seed = seed; }
inline void remove_barrier(const char* name) { removed_barrier = name; }

// --- threads ---

enum class Wait : uint8_t { none, grid, block, warp, shuffle, done };

class Block;

struct Thread {
  Block* block = nullptr;
  dim3 index;
  unsigned number = 0;  // among all that are alive; a warp's are consecutive, from a multiple of 32 on
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

  void reset(unsigned warps) {
    ready_.clear();
    priority_.assign(warps, 0);
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

}  // namespace simt
