// K = G G^T over rows that are never concatenated, one K for each group of pieces.
#pragma once

#include <functional>
#include <vector>

#include "../common/chunks.h"
#include "../common/scratch.h"

namespace gradsurgery {

constexpr int64_t kStrip = 256;  // coordinates of every row that are widened side by side

// Products and sums in float64, in a fixed order: symmetric by construction, the same bits for any number of threads and, for
// gradients of 32 and 16 bits, under every instruction set. The K of a group has the bits of its pieces' K alone.
void gram_cpu(const Rows& rows, const ParallelFor& parallel, double* gram /* [G, T, T] */);

// The same after a chunk's rows were written: `start` gives each thread what it calls with (piece, start, n) before it reads a
// chunk, while that lies in the cache.
using WriteChunk = std::function<void(int64_t piece, int64_t start, int64_t n)>;
void gram_cpu(const Rows& rows, const ParallelFor& parallel, double* gram, const std::function<WriteChunk()>& start);

// Widens a chunk of any scalar type to float64.
ChunkReader::Widen widen_cpu();

// Sums the products of the rows of one block, chunk by chunk: short sums of short sums lose less to rounding than one long sum.
class BlockProducts {
 public:
  explicit BlockProducts(const Rows& rows);
  void begin();
  void add(int64_t piece, int64_t start, int64_t n);  // at most kChunk coordinates
  void finish(double* sums /* [T, T] */);             // the upper triangle; the rest is zero

 private:
  using Chunk = void (*)(Scalar, const char* const*, int, int64_t, double*, double*, const char**);

  void flush();

  ChunkReader reader_;
  Chunk chunk_;
  int tasks_;
  size_t lanes_;                       // of all products: [T, T, kLanes]
  Scratch<double, 512> cells_, sums_;  // of the last chunks, and of the block so far
  std::vector<double> present_;
  Scratch<double, 4 * kStrip> packed_;
  Scratch<const char*, 16> strips_;
  int chunks_ = 0;
};

}  // namespace gradsurgery
