
#include "../common/cpu.h"
#include "../common/scratch.h"
#include "gram.h"

#define GS_TARGET_FILE "../gram/gram_isa.h"
#include "../common/foreach_isa.h"

namespace gradsurgery {

ChunkReader::Widen widen_cpu() { return GS_PICK(widen); }

// A fixed tree: lanes l and l + 4, then l and l + 2, then l and l + 1.
static double sum_lanes(const double* cell /* [kLanes] */) {
  double lane[kLanes];
  std::copy(cell, cell + kLanes, lane);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
  return lane[0];
}

void gram_cpu(const Rows& rows, const ParallelFor& parallel, double* gram) { gram_cpu(rows, parallel, gram, nullptr); }

void gram_cpu(const Rows& rows, const ParallelFor& parallel, double* gram, const std::function<WriteChunk()>& start) {
  const int tasks = rows.tasks;
  const int64_t square = int64_t(tasks) * tasks;
  const Blocks blocks(rows);
  const auto chunk = GS_PICK(gram_chunk);
  Scratch<double, 64> partial(size_t(blocks.count() * square));  // [blocks, T, T], upper triangles
  const auto sum_blocks = [&](int64_t first, int64_t last) {
    ChunkReader reader(rows, widen_cpu());
    const WriteChunk write = start ? start() : nullptr;
    // The lanes of all products [T, T, kLanes]: of the last chunks, and of the block so far. Short sums of short sums lose less
    // to rounding than one long sum.
    const size_t lanes = size_t(square * kLanes);
    Scratch<double, 512> cells(lanes), sums(lanes);
    std::vector<double> present;
    Scratch<double, 4 * kStrip> packed(size_t(tasks * kStrip));
    Scratch<const char*, 16> strips(tasks);
    std::fill(cells.data(), cells.data() + lanes, 0.0);
    for (int64_t block = first; block < last; ++block) {
      std::fill(sums.data(), sums.data() + lanes, 0.0);
      int chunks = 0;
      const auto flush = [&] {
        double *from = cells.data(), *to = sums.data();
        for (size_t k = 0; k < lanes; ++k) to[k] += from[k];
        std::fill(from, from + lanes, 0.0);
        chunks = 0;
      };
      for_each_chunk(rows, blocks[block], [&](int64_t piece, int64_t at, int64_t n) {
        if (write) write(piece, at, n);
        reader.read(piece, at, n);
        const int count = reader.count();
        if (count == tasks) {
          chunk(reader.scalar(), reader.pointers(), count, n, cells.data(), packed.data(), strips.data());
        } else if (count > 0) {
          present.assign(size_t(count) * count * kLanes, 0.0);
          chunk(reader.scalar(), reader.pointers(), count, n, present.data(), packed.data(), strips.data());
          for (int i = 0; i < count; ++i)
            for (int j = i; j < count; ++j) {
              double* to = cells.data() + (int64_t(reader.tasks()[i]) * tasks + reader.tasks()[j]) * kLanes;
              for (int l = 0; l < kLanes; ++l) to[l] += present[(int64_t(i) * count + j) * kLanes + l];
            }
        }
        if (++chunks == 8) flush();
      });
      flush();
      for (int64_t k = 0; k < square; ++k) partial[block * square + k] = sum_lanes(sums.data() + k * kLanes);
    }
  };
  blocks.for_each_range(parallel, sum_blocks);
  for (int group = 0; group < rows.groups(); ++group, gram += square) {
    const int64_t first = blocks.first_of(group), last = blocks.first_of(group + 1);
    for (int i = 0; i < tasks; ++i)
      for (int j = i; j < tasks; ++j) {
        double sum = 0.0;
        for (int64_t block = first; block < last; ++block) sum += partial[block * square + i * tasks + j];
        gram[i * tasks + j] = gram[j * tasks + i] = sum;
      }
  }
}

}  // namespace gradsurgery
