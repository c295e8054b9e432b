#include "../common/cpu.h"
#include "../common/scratch.h"
#include "../gram/gram.h"
#include "combine.h"

#define GS_TARGET_FILE "../combine/combine_isa.h"
#include "../common/foreach_isa.h"

namespace gradsurgery {

void combine_cpu(const Rows& rows, const double* w, bool accumulate, const ParallelFor& parallel) {
  const auto add = GS_PICK(combine_chunk);
  const auto finish = GS_PICK(narrow);
  const Blocks blocks(rows);
  const auto sum_blocks = [&](int64_t first, int64_t last) {
    ChunkReader reader(rows, widen_cpu());
    Scratch<double, 16> present_w(rows.tasks);
    alignas(64) double sum[kChunk];
    char strided[kChunk * sizeof(double)];
    // Backwards: the end of what the Gram pass read last is still in the cache.
    for (int64_t b = last - 1; b >= first; --b) {
      const Block block = blocks[b];
      const double* const group_w = w + int64_t(block.group) * rows.tasks;
      for_each_chunk(rows, block, [&](int64_t piece, int64_t start, int64_t n) {
        reader.read(piece, start, n);
        for (int r = 0; r < reader.count(); ++r) present_w[r] = group_w[reader.tasks()[r]];
        if (reader.count() > 0)
          add(reader.scalar(), reader.pointers(), present_w.data(), reader.count(), n, sum);
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
  blocks.for_each_range(parallel, sum_blocks);
}

}  // namespace gradsurgery
