// Cuts the coordinates of all pieces into blocks whose borders depend on nothing but N, and a block into chunks that stay in the
// first-level cache. Fixed borders, summed in order, give the same bits for any number of threads.
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

inline int64_t block_count(const Rows& rows) { return (rows.numel + kBlock - 1) / kBlock; }

// Runs body(first, last) over disjoint ranges that cover 0..count-1; the torch side passes torch's own thread pool.
using ParallelFor = std::function<void(int64_t count, const std::function<void(int64_t first, int64_t last)>& body)>;

// Calls use(piece, start, n) for every chunk of one block, in order.
template <class Use>
void for_each_chunk(const Rows& rows, int64_t block, Use use) {
  int64_t at = block * kBlock;
  const int64_t end = std::min(at + kBlock, rows.numel);
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
