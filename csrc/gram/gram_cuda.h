// K = G G^T on a CUDA device, in two stages: every block leaves one float64 sum a pair of tasks, then these are added in order. A
// block works on chunks of one group of pieces; the blocks of a group follow each other.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/cuda_table.h"

namespace gradsurgery {

constexpr int kMmaThreads = 128;
constexpr int kFmaTasks = 16;  // above, gradients of 16 bits go through tensor cores

struct GramLaunch {
  int threads;
  int blocks;  // along the coordinates: partial sums a pair
  int panels;  // along the pairs: 1, or pairs of 16-row blocks above 32 tasks
};

GS_HOST_DEVICE constexpr int64_t pair_count(int64_t tasks) { return tasks * (tasks + 1) / 2; }

// A function of its arguments alone, never of the GPU, so that the order of additions is the same on all of them.
constexpr GramLaunch gram_launch(int tasks, int chunks, int groups) {
  const int more = groups - 1;  // blocks, so that each group has one
  if (tasks <= kSmallTasks) return {256, std::min(chunks, 1024 + more), 1};
  if (tasks <= 32) return {tasks <= 24 ? 192 : 320, std::min(chunks, 512 + more), 1};
  const int rows = (tasks + 15) / 16;
  const int64_t most = (int64_t(8) << 20) / pair_count(tasks);  // at most 64 MB of partial sums, beside those of more groups
  return {256, std::min<int>(chunks, int(std::clamp<int64_t>(most, 1, 128)) + more), rows * (rows + 1) / 2};
}

inline bool uses_mma(const RowTable& table) { return table.tasks() > kFmaTasks && table.rows_16_bit(); }

inline GramLaunch gram_launch(const RowTable& table) {
  GramLaunch launch = gram_launch(table.tasks(), table.chunks(), table.groups());
  if (uses_mma(table)) launch.threads = kMmaThreads;
  return launch;
}

// Float64 elements that gram_partials_cuda writes: [pairs, blocks].
inline int64_t gram_partials(const RowTable& table) { return pair_count(table.tasks()) * gram_launch(table).blocks; }

// The first of a group's blocks; of group G their number, `blocks`: one a chunk, or in proportion to the chunks, and one each.
GS_HOST_DEVICE int group_first_block(const Table& table, int group, int blocks) {
  if (table.groups == 1 || blocks == 0) return group == 0 ? 0 : blocks;
  const int64_t first = group_chunks(table)[group];
  if (blocks == table.chunks) return int(first);
  return int(first * (blocks - table.groups) / table.chunks) + group;
}

// `stream` is a cudaStream_t. Launch errors are left for the caller to collect.
void gram_partials_cuda(const RowTable& table, double* partial /* [pairs, blocks] */, void* stream);
void gram_finish_cuda(const RowTable& table, const double* partial, double* gram /* [G, T, T] */, void* stream);

}  // namespace gradsurgery
