#include <atomic>

#include "../combine/write_blocks.h"
#include "samples.h"

namespace gradsurgery {
namespace {

// How the coordinates of one sample follow each other: its share of every piece, cut as gradients of this size alone would be.
class Sample {
 public:
  Sample(const Rows& rows, int64_t samples) : samples_(samples) {
    one_.tasks = rows.tasks;
    for (const Piece& piece : rows.pieces) {
      const int64_t numel = samples > 0 ? piece.numel / samples : 0;
      one_.pieces.push_back(Piece{numel, one_.numel});
      one_.numel += numel;
    }
  }

  const Rows& rows() const { return one_; }  // pieces, and no rows

  // use(piece, start, n) of the chunks of a block of sample b, as positions in the pieces of all samples.
  template <class Use>
  void for_each_chunk(int64_t b, const Block& block, Use use) const {
    gradsurgery::for_each_chunk(one_, block,
                                [&](int64_t piece, int64_t at, int64_t n) { use(piece, b * one_.pieces[piece].numel + at, n); });
  }

  // Calls body(first, last) over all samples: in parallel, unless waking a thread would take longer.
  template <class Body>
  void for_each_range(const ParallelFor& parallel, const Body& body) const {
    constexpr int64_t kOverhead = 1024;  // what a sample costs by itself, in coordinates
    if (samples_ <= 1 || samples_ * (one_.numel + kOverhead) <= kBlock)
      body(0, samples_);
    else
      parallel(samples_, body);
  }

 private:
  int64_t samples_;
  Rows one_;
};

// K of one sample after another.
class SampleGram {
 public:
  SampleGram(const Rows& rows, const Sample& sample)
      : sample_(sample), blocks_(sample.rows()), sums_(rows), tasks_(rows.tasks), upper_(size_t(tasks_) * tasks_) {}

  void operator()(int64_t b, double* gram /* [T, T] */) {
    const int64_t square = int64_t(tasks_) * tasks_;
    std::fill(gram, gram + square, 0.0);
    for (int64_t block = 0; block < blocks_.count(); ++block) {
      sums_.begin();
      sample_.for_each_chunk(b, blocks_[block], [&](int64_t piece, int64_t at, int64_t n) { sums_.add(piece, at, n); });
      sums_.finish(upper_.data());
      for (int64_t k = 0; k < square; ++k) gram[k] += upper_[k];
    }
    for (int i = 0; i < tasks_; ++i)
      for (int j = 0; j < i; ++j) gram[int64_t(i) * tasks_ + j] = gram[int64_t(j) * tasks_ + i];
  }

 private:
  const Sample& sample_;
  Blocks blocks_;
  BlockProducts sums_;
  int tasks_;
  Scratch<double, 64> upper_;
};

// The combination of one sample after another.
class SampleSum {
 public:
  SampleSum(const Rows& rows, const Sample& sample, bool accumulate)
      : sample_(sample), blocks_(sample.rows()), writer_(rows, accumulate), add_(rows.tasks) {}

  void operator()(int64_t b, const double* w /* [T] */) {
    // Backwards: the end of what the Gram pass read last is still in the cache.
    for (int64_t block = blocks_.count() - 1; block >= 0; --block)
      sample_.for_each_chunk(b, blocks_[block], [&](int64_t piece, int64_t at, int64_t n) {
        writer_.write(piece, at, n, [&](ChunkReader& reader, double* sum) { add_(reader, w, n, sum); });
      });
  }

 private:
  const Sample& sample_;
  Blocks blocks_;
  ChunkWriter writer_;
  WeightedSum add_;
};

}  // namespace

void gram_samples_cpu(const Rows& rows, int64_t samples, const ParallelFor& parallel, double* gram) {
  const Sample sample(rows, samples);
  sample.for_each_range(parallel, [&](int64_t first, int64_t last) {
    SampleGram find(rows, sample);
    for (int64_t b = first; b < last; ++b) find(b, gram + b * rows.tasks * rows.tasks);
  });
}

void combine_samples_cpu(const Rows& rows, int64_t samples, const double* w, bool accumulate, const ParallelFor& parallel) {
  const Sample sample(rows, samples);
  sample.for_each_range(parallel, [&](int64_t first, int64_t last) {
    SampleSum combine(rows, sample, accumulate);
    for (int64_t b = first; b < last; ++b) combine(b, w + b * rows.tasks);
  });
}

void pcgrad_samples_cpu(const Rows& rows, int64_t samples, const PcgradOptions& options, const int64_t* order, int64_t* key,
                        bool accumulate, const ParallelFor& parallel, double* gram, double* w) {
  const Sample sample(rows, samples);
  std::atomic<bool> finite{true};
  sample.for_each_range(parallel, [&](int64_t first, int64_t last) {
    SampleGram find(rows, sample);
    SampleSum combine(rows, sample, accumulate);
    PcgradOptions own = options;
    for (int64_t b = first; b < last; ++b) {
      double *K = gram + b * rows.tasks * rows.tasks, *weights = w + b * rows.tasks;
      find(b, K);
      own.group = options.group + uint32_t(b);
      if (!pcgrad_weights_of_group(K, rows.tasks, own, order, key, weights)) finite.store(false, std::memory_order_relaxed);
      combine(b, weights);
    }
  });
  if (options.kind == OrderKind::random && finite.load()) key[1] += 1;
}

}  // namespace gradsurgery
