
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

BlockProducts::BlockProducts(const Rows& rows)
    : reader_(rows, widen_cpu()),
      chunk_(GS_PICK(gram_chunk)),
      tasks_(rows.tasks),
      lanes_(size_t(rows.tasks) * rows.tasks * kLanes),
      cells_(lanes_),
      sums_(lanes_),
      packed_(size_t(rows.tasks) * kStrip),
      strips_(rows.tasks) {
  std::fill(cells_.data(), cells_.data() + lanes_, 0.0);
}

void BlockProducts::begin() { std::fill(sums_.data(), sums_.data() + lanes_, 0.0); }

void BlockProducts::add(int64_t piece, int64_t start, int64_t n) {
  reader_.read(piece, start, n);
  const int count = reader_.count();
  if (count == tasks_) {
    chunk_(reader_.scalar(), reader_.pointers(), count, n, cells_.data(), packed_.data(), strips_.data());
  } else if (count > 0) {
    present_.assign(size_t(count) * count * kLanes, 0.0);
    chunk_(reader_.scalar(), reader_.pointers(), count, n, present_.data(), packed_.data(), strips_.data());
    for (int i = 0; i < count; ++i)
      for (int j = i; j < count; ++j) {
        double* to = cells_.data() + (int64_t(reader_.tasks()[i]) * tasks_ + reader_.tasks()[j]) * kLanes;
        for (int l = 0; l < kLanes; ++l) to[l] += present_[(int64_t(i) * count + j) * kLanes + l];
      }
  }
  if (++chunks_ == 8) flush();
}

void BlockProducts::finish(double* sums) {
  flush();
  const int64_t square = int64_t(tasks_) * tasks_;
  for (int64_t k = 0; k < square; ++k) sums[k] = sum_lanes(sums_.data() + k * kLanes);
}

void BlockProducts::flush() {
  double *from = cells_.data(), *to = sums_.data();
  for (size_t k = 0; k < lanes_; ++k) to[k] += from[k];
  std::fill(from, from + lanes_, 0.0);
  chunks_ = 0;
}

void gram_cpu(const Rows& rows, const ParallelFor& parallel, double* gram) { gram_cpu(rows, parallel, gram, nullptr); }

void gram_cpu(const Rows& rows, const ParallelFor& parallel, double* gram, const std::function<WriteChunk()>& start) {
  const int tasks = rows.tasks;
  const int64_t square = int64_t(tasks) * tasks;
  const Blocks blocks(rows);
  Scratch<double, 64> partial(size_t(blocks.count() * square));  // [blocks, T, T], upper triangles
  const auto sum_blocks = [&](int64_t first, int64_t last) {
    BlockProducts sums(rows);
    const WriteChunk write = start ? start() : nullptr;
    for (int64_t block = first; block < last; ++block) {
      sums.begin();
      for_each_chunk(rows, blocks[block], [&](int64_t piece, int64_t at, int64_t n) {
        if (write) write(piece, at, n);
        sums.add(piece, at, n);
      });
      sums.finish(partial.data() + block * square);
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
