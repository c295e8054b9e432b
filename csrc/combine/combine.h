// out = sum_t w_t g_t (+ out), with the weights of each piece's group: one read of the gradients, one write.
#pragma once

#include "../common/chunks.h"

namespace gradsurgery {

// Sums in float64, then rounds to the output's type. An output may be one of the rows; absent rows add nothing, a piece
// without any row gives zeros.
void combine_cpu(const Rows& rows, const double* w /* [G, T] */, bool accumulate, const ParallelFor& parallel);

}  // namespace gradsurgery
