// gram -> weights -> combine in one call, for gradients so small that three calls would cost more than the arithmetic.
#pragma once

#include "../combine/combine.h"
#include "../gram/gram.h"
#include "../weights/weights.h"

namespace gradsurgery {

inline void pcgrad_cpu(const Rows& rows, const PcgradOptions& options, const int64_t* order, int64_t* key, bool accumulate,
                       const ParallelFor& parallel, double* gram /* [T, T] */, double* w /* [T] */) {
  gram_cpu(rows, parallel, gram);
  pcgrad_weights(gram, 1, rows.tasks, options, order, key, w);
  combine_cpu(rows, w, accumulate, parallel);
}

}  // namespace gradsurgery
