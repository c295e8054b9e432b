#include <cmath>
#include <limits>
#include <memory>

#include "../common/cpu.h"
#include "../common/scratch.h"
#include "../gram/gram.h"
#include "buffers.h"

#define GS_TARGET_FILE "../buffers/buffers_isa.h"
#include "../common/foreach_isa.h"

namespace gradsurgery {
namespace {

// The rows of one chunk of the present tasks: gradients as they lie or gathered, buffers likewise and scattered back.
class ChunkWriter {
 public:
  explicit ChunkWriter(const BufferedStep& step) : step_(step) {}

  // Calls change(task, scalar of g, g or null, scalar of y, y) for every present task.
  template <class Change>
  void each(int64_t piece, int64_t start, int64_t n, Change change) {
    for (int t = 0; t < step_.grads.tasks; ++t) {
      const Row& y = step_.buffers.row(piece, t);
      if (!y.data) continue;
      const Row& g = step_.grads.row(piece, t);
      const char* from = nullptr;
      if (g.data && g.strided >= 0) {
        gather(step_.grads, g, start, n, gradient_);
        from = gradient_;
      } else if (g.data) {
        from = g.data + start * size_of(g.scalar);
      }
      if (y.strided < 0) {
        change(t, g.scalar, from, y.scalar, const_cast<char*>(y.data) + start * size_of(y.scalar));
      } else {
        gather(step_.buffers, y, start, n, buffer_);
        change(t, g.scalar, from, y.scalar, buffer_);
        scatter(step_.buffers, y, start, n, buffer_);
      }
    }
  }

 private:
  const BufferedStep& step_;
  char gradient_[kChunk * sizeof(double)];
  char buffer_[kChunk * sizeof(double)];
};

// A sum a task and lane for each block, so that blocks may be worked on in any order.
class BlockSums {
 public:
  explicit BlockSums(const BufferedStep& step)
      : tasks_(step.grads.tasks), sums_(size_t(Blocks(step.grads).count()) * size_t(tasks_) * kLanes, 0.0) {}

  double* lanes(int64_t block, int task) { return sums_.data() + (block * tasks_ + task) * kLanes; }

  double total(int64_t blocks, int task) {
    double sum = 0.0;
    for (int64_t block = 0; block < blocks; ++block) {
      const double* lane = lanes(block, task);
      sum += ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
    }
    return sum;
  }

 private:
  int tasks_;
  std::vector<double> sums_;
};
static_assert(kLanes == 8, "BlockSums::total adds eight lanes");

}  // namespace

void ema_gram_cpu(const BufferedStep& step, const double* scales, double rate, const ParallelFor& parallel, double* gram) {
  const auto row = GS_PICK(ema_row);
  const int tasks = step.grads.tasks;
  BlockSums broken(step);
  gram_cpu(step.buffers, parallel, gram, [&]() -> WriteChunk {
    const auto writer = std::make_shared<ChunkWriter>(step);
    return [&, writer](int64_t piece, int64_t start, int64_t n) {
      const int64_t block = (step.grads.pieces[piece].begin + start) / kBlock;
      writer->each(piece, start, n, [&](int t, Scalar gradient, const char* g, Scalar buffer, char* y) {
        row(gradient, g, buffer, y, n, scales[t], rate, broken.lanes(block, t));
      });
    };
  });
  const int64_t blocks = Blocks(step.grads).count();
  for (int t = 0; t < tasks; ++t) {
    if (broken.total(blocks, t) == 0.0) continue;
    for (int j = 0; j < tasks; ++j) gram[t * tasks + j] = gram[j * tasks + t] = std::numeric_limits<double>::quiet_NaN();
  }
}

void excess_risk_cpu(const BufferedStep& step, const ParallelFor& parallel, double* risk) {
  const auto row = GS_PICK(risk_row);
  BlockSums sums(step);
  const Blocks blocks(step.grads);
  const auto run = [&](int64_t first, int64_t last) {
    ChunkWriter writer(step);
    for (int64_t block = first; block < last; ++block)
      for_each_chunk(step.grads, blocks[block], [&](int64_t piece, int64_t start, int64_t n) {
        writer.each(piece, start, n, [&](int t, Scalar gradient, const char* g, Scalar buffer, char* y) {
          row(gradient, g, buffer, y, n, sums.lanes(block, t));
        });
      });
  };
  blocks.for_each_range(parallel, run);
  for (int t = 0; t < step.grads.tasks; ++t) risk[t] = sums.total(blocks.count(), t);
}

}  // namespace gradsurgery
