// The CPU kernels that turn the rows of a chunk into one float64 value a coordinate share how these are written.
#pragma once

#include "../common/chunks.h"
#include "../gram/gram.h"
#include "combine.h"

namespace gradsurgery {

// Writes chunks, one after the other.
class ChunkWriter {
 public:
  ChunkWriter(const Rows& rows, bool accumulate)
      : rows_(rows), accumulate_(accumulate), finish_(narrow_cpu()), reader_(rows, widen_cpu()) {}

  // fill(reader, sum) computes sum [n] from the rows that `reader` holds, at least one, and what it computes is rounded into the
  // output, or added to it.
  template <class Fill>
  void write(int64_t piece, int64_t start, int64_t n, Fill fill) {
    reader_.read(piece, start, n);
    if (reader_.count() > 0)
      fill(reader_, sum_);
    else
      std::fill(sum_, sum_ + n, 0.0);
    const Row& out = rows_.out[piece];
    if (out.strided < 0) {
      finish_(sum_, n, accumulate_, out.scalar, const_cast<char*>(out.data) + start * size_of(out.scalar));
    } else {
      if (accumulate_) gather(rows_, out, start, n, strided_);
      finish_(sum_, n, accumulate_, out.scalar, strided_);
      scatter(rows_, out, start, n, strided_);
    }
  }

 private:
  const Rows& rows_;
  bool accumulate_;
  Narrow finish_;
  ChunkReader reader_;
  alignas(64) double sum_[kChunk];
  char strided_[kChunk * sizeof(double)];
};

// For every chunk: fill(reader, group, piece, start, n, sum) as above. `new_fill` makes one `fill` a thread.
template <class NewFill>
void write_blocks(const Rows& rows, bool accumulate, const ParallelFor& parallel, NewFill new_fill) {
  const Blocks blocks(rows);
  const auto write = [&](int64_t first, int64_t last) {
    ChunkWriter writer(rows, accumulate);
    auto fill = new_fill();
    // Backwards: the end of what the Gram pass read last is still in the cache.
    for (int64_t b = last - 1; b >= first; --b) {
      const Block block = blocks[b];
      for_each_chunk(rows, block, [&](int64_t piece, int64_t start, int64_t n) {
        writer.write(piece, start, n, [&](ChunkReader& reader, double* sum) { fill(reader, block.group, piece, start, n, sum); });
      });
    }
  };
  blocks.for_each_range(parallel, write);
}

}  // namespace gradsurgery
