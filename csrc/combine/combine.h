// out = sum_t w_t g_t (+ out), with the weights of each piece's group: one read of the gradients, one write.
#pragma once

#include "../common/chunks.h"
#include "../common/scratch.h"

namespace gradsurgery {

// to[k] = sum[k] (+ to[k]), rounded to the output's type, by the best instruction set there is.
using Narrow = void (*)(const double* sum, int64_t n, bool accumulate, Scalar scalar, char* to);
Narrow narrow_cpu();

// Sums a chunk's rows with the weights of their tasks.
class WeightedSum {
 public:
  explicit WeightedSum(int tasks);
  void operator()(ChunkReader& reader, const double* w /* [T] */, int64_t n, double* sum /* [n, rounded up to eight] */);

 private:
  using Add = void (*)(Scalar, const char* const*, const double*, int, int64_t, double*);

  Add add_;
  Scratch<double, 16> present_;  // of the rows that are there
};

// Sums in float64, then rounds to the output's type. An output may be one of the rows; absent rows add nothing, a piece
// without any row gives zeros.
void combine_cpu(const Rows& rows, const double* w /* [G, T] */, bool accumulate, const ParallelFor& parallel);

}  // namespace gradsurgery
