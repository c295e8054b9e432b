// Cuts the coordinates of every group of pieces into blocks whose borders depend on nothing but the group's size, and a block
// into chunks that stay in the first-level cache. Fixed borders, summed in order, give the same bits for any number of threads.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <vector>

#include "rows.h"
#include "scratch.h"

namespace gradsurgery {

constexpr int64_t kBlock = 65536;  // coordinates a task in one unit of parallel work
constexpr int64_t kChunk = 1024;   // coordinates a task at a time
constexpr int kLanes = 8;          // partial sums side by side, whatever the width of the registers

// Runs body(first, last) over disjoint ranges that cover 0..count-1; the torch side passes torch's own thread pool.
using ParallelFor = std::function<void(int64_t count, const std::function<void(int64_t first, int64_t last)>& body)>;

struct Block {
  int64_t begin, end;  // coordinates in the virtual concatenation of all pieces
  int group;
};

// The blocks of all groups, group by group; each lies in one group.
class Blocks {
 public:
  explicit Blocks(const Rows& rows) : rows_(rows), count_((rows.numel + kBlock - 1) / kBlock) {
    if (rows.groups() == 1) return;
    first_.resize(size_t(rows.groups()) + 1);
    for (int g = 0; g < rows.groups(); ++g)
      first_[g + 1] = first_[g] + (rows.group_begin(g + 1) - rows.group_begin(g) + kBlock - 1) / kBlock;
    count_ = first_.back();
  }

  int64_t count() const { return count_; }
  int64_t first_of(int group) const { return first_.empty() ? (group == 0 ? 0 : count_) : first_[group]; }  // of group G: count()

  Block operator[](int64_t block) const {
    if (first_.empty()) return {block * kBlock, std::min((block + 1) * kBlock, rows_.numel), 0};
    const int group = int(std::upper_bound(first_.begin(), first_.end(), block) - first_.begin()) - 1;
    const int64_t begin = rows_.group_begin(group) + (block - first_[group]) * kBlock;
    return {begin, std::min(begin + kBlock, rows_.group_begin(group + 1)), group};
  }

  // Calls body(first, last) over all blocks: in parallel, unless there is so little to do that waking a thread would take longer.
  template <class Body>
  void for_each_range(const ParallelFor& parallel, const Body& body) const {
    constexpr int64_t kOverhead = 1024;  // what a block costs by itself, in coordinates
    if (count_ <= 1 || rows_.numel + count_ * kOverhead <= kBlock)
      body(0, count_);
    else
      parallel(count_, body);
  }

 private:
  const Rows& rows_;
  int64_t count_;
  std::vector<int64_t> first_;  // [G + 1], or empty for a single group
};

// Calls use(piece, start, n) for every chunk of one block, in order.
template <class Use>
void for_each_chunk(const Rows& rows, const Block& block, Use use) {
  int64_t at = block.begin;
  const int64_t end = block.end;
  auto next = std::upper_bound(rows.pieces.begin(), rows.pieces.end(), at, [](int64_t x, const Piece& p) { return x < p.begin; });
  for (int64_t piece = (next - rows.pieces.begin()) - 1; at < end; ++piece) {
    const Piece& p = rows.pieces[piece];
    const int64_t stop = std::min(end, p.begin + p.numel);
    for (; at < stop; at += std::min(kChunk, stop - at)) use(piece, at - p.begin, std::min(kChunk, stop - at));
  }
}

// Walks the memory of a strided row from logical position `start`: touch(offset in elements, position in the chunk).
template <class Touch>
void walk(const Strided& shape, int64_t start, int64_t n, Touch touch) {
  const int last = int(shape.sizes.size()) - 1;
  std::vector<int64_t> index(shape.sizes.size());
  int64_t offset = 0;
  for (int d = last; d >= 0; --d) {
    index[d] = start % shape.sizes[d];
    start /= shape.sizes[d];
    offset += index[d] * shape.strides[d];
  }
  for (int64_t k = 0; k < n; ++k) {
    touch(offset, k);
    for (int d = last; d >= 0; --d) {
      offset += shape.strides[d];
      if (++index[d] < shape.sizes[d]) break;
      offset -= shape.sizes[d] * shape.strides[d];
      index[d] = 0;
    }
  }
}

inline void gather(const Rows& rows, const Row& row, int64_t start, int64_t n, char* to) {
  const int64_t bytes = size_of(row.scalar);
  walk(rows.strided[row.strided], start, n,
       [&](int64_t offset, int64_t k) { std::memcpy(to + k * bytes, row.data + offset * bytes, bytes); });
}

inline void scatter(const Rows& rows, const Row& row, int64_t start, int64_t n, const char* from) {
  const int64_t bytes = size_of(row.scalar);
  char* to = const_cast<char*>(row.data);
  walk(rows.strided[row.strided], start, n,
       [&](int64_t offset, int64_t k) { std::memcpy(to + offset * bytes, from + k * bytes, bytes); });
}

// The rows of one chunk that are present, as pointers to one scalar type: straight into the gradients when they are dense and
// alike, else copies in scratch of a chunk's size (widened to float64 where the types differ).
class ChunkReader {
 public:
  using Widen = void (*)(Scalar, const char*, int64_t, double*);

  ChunkReader(const Rows& rows, Widen widen) : rows_(rows), widen_(widen), pointers_(rows.tasks), tasks_(rows.tasks) {}

  void read(int64_t piece, int64_t start, int64_t n) {
    count_ = 0;
    bool alike = true, dense = true;
    for (int t = 0; t < rows_.tasks; ++t) {
      const Row& row = rows_.row(piece, t);
      if (!row.data) continue;
      if (count_ > 0 && row.scalar != scalar_) alike = false;
      if (row.strided >= 0) dense = false;
      if (count_ == 0) scalar_ = row.scalar;
      tasks_[count_++] = t;
    }
    if (alike && dense) {
      for (int r = 0; r < count_; ++r) pointers_[r] = rows_.row(piece, tasks_[r]).data + start * size_of(scalar_);
      return;
    }
    scratch_.resize(size_t(rows_.tasks + 1) * kChunk);
    for (int r = 0; r < count_; ++r) {
      const Row& row = rows_.row(piece, tasks_[r]);
      double* slot = scratch_.data() + int64_t(r) * kChunk;
      char* gathered = reinterpret_cast<char*>(alike ? slot : scratch_.data() + int64_t(rows_.tasks) * kChunk);
      const char* source = row.data + start * size_of(row.scalar);
      if (row.strided >= 0) {
        gather(rows_, row, start, n, gathered);
        source = gathered;
      }
      if (!alike)
        widen_(row.scalar, source, n, slot);
      else if (source != gathered)
        std::memcpy(gathered, source, size_t(n) * size_of(row.scalar));
      pointers_[r] = reinterpret_cast<const char*>(slot);
    }
    if (!alike) scalar_ = Scalar::f64;
  }

  int count() const { return count_; }  // rows present
  Scalar scalar() const { return scalar_; }
  const char* const* pointers() { return pointers_.data(); }  // [count]
  const int* tasks() { return tasks_.data(); }                // [count], ascending

 private:
  const Rows& rows_;
  Widen widen_;
  Scratch<const char*, 16> pointers_;
  Scratch<int, 16> tasks_;
  std::vector<double> scratch_;
  int count_ = 0;
  Scalar scalar_ = Scalar::f32;
};

}  // namespace gradsurgery
