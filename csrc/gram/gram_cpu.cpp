#include "../common/cpu.h"
#include "gram.h"

#define GS_TARGET_FILE "../gram/gram_isa.h"
#include "../common/foreach_isa.h"

namespace gradsurgery {

ChunkReader::Widen widen_cpu() { return GS_PICK(widen); }

void gram_cpu(const Rows& rows, const ParallelFor& parallel, double* gram) {
  const int tasks = rows.tasks;
  const int64_t square = int64_t(tasks) * tasks, blocks = block_count(rows);
  const auto chunk = GS_PICK(gram_chunk);
  std::vector<double> partial(size_t(blocks * square), 0.0);  // [blocks, T, T], upper triangles
  const auto sum_blocks = [&](int64_t first, int64_t last) {
    ChunkReader reader(rows, widen_cpu());
    std::vector<double> compact;
    for (int64_t block = first; block < last; ++block) {
      double* sums = partial.data() + block * square;
      for_each_chunk(rows, block, [&](int64_t piece, int64_t start, int64_t n) {
        reader.read(piece, start, n);
        const int count = reader.count();
        if (count == tasks) {
          chunk(reader.scalar(), reader.pointers(), count, n, sums);
        } else if (count > 0) {
          compact.assign(size_t(count) * count, 0.0);
          chunk(reader.scalar(), reader.pointers(), count, n, compact.data());
          for (int i = 0; i < count; ++i)
            for (int j = i; j < count; ++j) sums[reader.tasks()[i] * tasks + reader.tasks()[j]] += compact[i * count + j];
        }
      });
    }
  };
  if (blocks <= 1)
    sum_blocks(0, blocks);
  else
    parallel(blocks, sum_blocks);
  for (int i = 0; i < tasks; ++i)
    for (int j = i; j < tasks; ++j) {
      double sum = 0.0;
      for (int64_t block = 0; block < blocks; ++block) sum += partial[block * square + i * tasks + j];
      gram[i * tasks + j] = gram[j * tasks + i] = sum;
    }
}

}  // namespace gradsurgery
