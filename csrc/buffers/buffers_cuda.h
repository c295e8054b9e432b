// The updates of buffers of the gradients' size on a CUDA device, each in one pass that also reduces over what it wrote.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/cuda_table.h"

namespace gradsurgery {

constexpr int kBufferThreads = 256;

// What one call's kernels share. The table has 2 T rows a piece, gradients and then buffers (see RowTable); a null gradient of a
// task with buffers counts as zeros.
struct BufferedCuda {
  int tasks = 0;
  const bool* valid = nullptr;  // on the device; where it is false nothing is written. Null: as true
};

// y <- y + rate (scale g - y) for up to kSmallTasks tasks and at least one chunk, and in the same pass the sums behind K = Y Y^T
// of the new y, for gram_finish_cuda. In float32, float64 as soon as one tensor is float64. A coordinate whose new value is not
// finite keeps its old one and makes its task's sums NaN. partial: [pairs, gram_launch(tasks, chunks, 1).blocks]
void ema_gram_cuda(const RowTable& table, const BufferedCuda& call, const double* scales /* [T] */, const double* rate,
                   double* partial, void* stream);

// The update alone, for more tasks; K is then read from the buffers. `broken` tells the tasks that met a value that is not
// finite.
void ema_rows_cuda(const RowTable& table, const BufferedCuda& call, const double* scales /* [T] */, const double* rate,
                   int32_t* broken /* [T] */, void* stream);
void refuse_cuda(const BufferedCuda& call, const int32_t* broken, double* gram /* [T, T] */, void* stream);

// Blocks a task: a function of its arguments alone, so that the order of additions is the same on every GPU.
constexpr int risk_blocks(int tasks, int chunks) { return std::max(1, std::min(chunks, 2048 / std::min(tasks, 2048))); }

// r <- sqrt(r^2 + g^2), and e = sum g^2 / r, with the same rules.
void excess_risk_cuda(const RowTable& table, const BufferedCuda& call, double* partial /* [T, risk_blocks] */,
                      double* risk /* [T] */, void* stream);

}  // namespace gradsurgery
