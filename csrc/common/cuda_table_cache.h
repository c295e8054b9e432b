// Tables in device memory, kept for the next call that has the same words: gradients mostly return to the same addresses step
// after step, and the passes of one step read the same rows.
//
// A kept table is found by its words, every one compared, so it cannot be out of date. It is read and overwritten on one stream
// alone, whose order is all that is needed: what was launched before an overwrite still reads what it was launched for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <vector>

#include "cuda_table.h"

namespace gradsurgery {

// What one stream's memory holds: a ring, in which new words overwrite the oldest. Bookkeeping alone, not safe for threads.
class TableRing {
 public:
  static constexpr size_t kWords = size_t(1) << 17;  // 1 MiB: the tables of some 25000 pieces of two tasks

  struct Span {
    size_t first, count;
    int users;  // calls that may still launch kernels that read it
  };

  // Null where these words are not held.
  Span* find(Words words);
  // Forgets what stands where the next `count` words go; none where they would not fit, or overwrite what is in use.
  std::optional<size_t> make_room(size_t count);
  // Notes that the words now stand at `first`, which make_room gave.
  Span* keep(size_t first, Words words);

 private:
  std::vector<int64_t> copy_ = std::vector<int64_t>(kWords);  // of the device memory
  std::list<Span> spans_;                                     // in the order of their coming
  size_t next_ = 0;
};

// A table in the cache, that is not overwritten while this lives: until its calls' kernels are launched.
class CachedTable {
 public:
  CachedTable() = default;
  CachedTable(TableRing::Span* span, const int64_t* memory) : span_(span), memory_(memory) {}
  CachedTable(CachedTable&& other) noexcept : span_(other.span_), memory_(other.memory_) { other.span_ = nullptr; }
  CachedTable& operator=(CachedTable&&) = delete;
  ~CachedTable();

  // Null: the caller has to bring memory of its own.
  const int64_t* memory() const { return span_ ? memory_ : nullptr; }

 private:
  TableRing::Span* span_ = nullptr;
  const int64_t* memory_ = nullptr;
};

// The words in memory of the current device, for kernels launched on `stream` (a cudaStream_t) from now on; written there unless
// they were found. Nothing is kept while the stream is being captured into a CUDA graph, which must write what it reads at every
// replay; of tables longer than a ring; and of streams beyond the first kMaxRings. Launch errors are left for the caller to
// collect.
CachedTable cached_table(Words words, int device, void* stream);

constexpr size_t kMaxRings = 64;

}  // namespace gradsurgery
