// K = G G^T on a CUDA device, in two stages: every block leaves one float64 sum a pair of tasks, then these are added in order.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/cuda_table.h"

namespace gradsurgery {

struct GramLaunch {
  int threads;
  int blocks;  // along the coordinates: partial sums a pair
  int panels;  // along the pairs: 1, or pairs of 16-row blocks above 32 tasks
};

GS_HOST_DEVICE constexpr int64_t pair_count(int64_t tasks) { return tasks * (tasks + 1) / 2; }

// A function of its arguments alone, never of the GPU, so that the order of additions is the same on all of them.
constexpr GramLaunch gram_launch(int tasks, int chunks) {
  if (tasks <= kSmallTasks) return {256, std::min(chunks, 1024), 1};
  if (tasks <= 32) return {tasks <= 24 ? 192 : 320, std::min(chunks, 512), 1};
  const int rows = (tasks + 15) / 16;
  const int64_t most = (int64_t(8) << 20) / pair_count(tasks);  // at most 64 MB of partial sums
  return {256, std::min<int>(chunks, int(std::clamp<int64_t>(most, 1, 128))), rows * (rows + 1) / 2};
}

// Float64 elements that gram_partials_cuda writes: [pairs, blocks].
constexpr int64_t gram_partials(int tasks, int chunks) { return pair_count(tasks) * gram_launch(tasks, chunks).blocks; }

// `stream` is a cudaStream_t. Launch errors are left for the caller to collect.
void gram_partials_cuda(RowTable& table, double* partial /* [pairs, blocks] */, void* stream);
void gram_finish_cuda(int tasks, int blocks, const double* partial, double* gram /* [T, T] */, void* stream);

}  // namespace gradsurgery
