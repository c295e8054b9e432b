// Methods that keep tensors of the gradients' size: one pass reads the gradients, updates the buffers and reduces over them.
#pragma once

#include <functional>
#include <vector>

#include "../common/chunks.h"

namespace gradsurgery {

// One call, for `present` tasks; gradients and buffers have the same pieces. A null gradient row of a present task counts as
// zeros, buffer rows of other tasks are null. A coordinate whose new value is not finite keeps its old one.
struct BufferedStep {
  const Rows& grads;
  const Rows& buffers;
  const std::vector<bool>& present;  // [T]
};

// y <- y + rate (scale g - y), and K = Y Y^T of the new y as stored. Rows and columns of absent tasks are zero, those of a task
// with a new value that is not finite are NaN.
void ema_gram_cpu(const BufferedStep& step, const double* scales /* [T] */, double rate, const ParallelFor& parallel,
                  double* gram /* [T, T] */);

// r <- sqrt(r^2 + g^2), and e = sum g^2 / r over the new r (0 where that is 0), in float64 and in a fixed order. 0 for absent
// tasks, NaN for a task with a new value that is not finite.
void excess_risk_cpu(const BufferedStep& step, const ParallelFor& parallel, double* risk /* [T] */);

}  // namespace gradsurgery
