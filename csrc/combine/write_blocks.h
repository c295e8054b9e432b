// The CPU kernels that turn the rows of a chunk into one float64 value a coordinate share how these are written.
#pragma once

#include "../common/chunks.h"
#include "../gram/gram.h"
#include "combine.h"

namespace gradsurgery {

// For every chunk: fill(reader, group, piece, start, n, sum) computes sum [n] from the rows that `reader` holds, at least one,
// and what it computes is rounded into the output, or added to it. `new_fill` makes one `fill` a thread.
template <class NewFill>
void write_blocks(const Rows& rows, bool accumulate, const ParallelFor& parallel, NewFill new_fill) {
  const Narrow finish = narrow_cpu();
  const Blocks blocks(rows);
  const auto write = [&](int64_t first, int64_t last) {
    ChunkReader reader(rows, widen_cpu());
    auto fill = new_fill();
    alignas(64) double sum[kChunk];
    char strided[kChunk * sizeof(double)];
    // Backwards: the end of what the Gram pass read last is still in the cache.
    for (int64_t b = last - 1; b >= first; --b) {
      const Block block = blocks[b];
      for_each_chunk(rows, block, [&](int64_t piece, int64_t start, int64_t n) {
        reader.read(piece, start, n);
        if (reader.count() > 0)
          fill(reader, block.group, piece, start, n, sum);
        else
          std::fill(sum, sum + n, 0.0);
        const Row& out = rows.out[piece];
        if (out.strided < 0) {
          finish(sum, n, accumulate, out.scalar, const_cast<char*>(out.data) + start * size_of(out.scalar));
        } else {
          if (accumulate) gather(rows, out, start, n, strided);
          finish(sum, n, accumulate, out.scalar, strided);
          scatter(rows, out, start, n, strided);
        }
      });
    }
  };
  blocks.for_each_range(parallel, write);
}

}  // namespace gradsurgery
