// Surgery of its own for every sample of a batch on a CUDA device: one block a sample, which reads its gradients once where they
// fit the block's shared memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/cuda_table.h"
#include "../weights/pcgrad_cuda.h"

namespace gradsurgery {

constexpr int kMaxSampleTasks = 1024;
constexpr int kSampleTile = 8;                       // with more than eight tasks a warp takes 8 x 8 pairs of them
constexpr int kMaxSampleTiles = 10;                  // a block: one for each warp; all of 32 tasks
constexpr int kSampleWord = 16;                      // bytes of a row that are staged as one
constexpr int64_t kMaxSampleRow = int64_t(1) << 30;  // coordinates of a piece: positions of words in it are 32-bit numbers
constexpr int kWholeSample = -1;                     // a window that is a whole row

// Shared memory of a launch that asks for no more, less than the 48 KB there are by what the kernel itself declares; and for
// which it goes where samples have to be read twice, so that several blocks fit a multiprocessor.
constexpr int64_t kSampleShared = 40 * 1024;

struct SamplesCuda {
  int64_t samples = 0;
  PcgradOptions options;
  const int64_t* order = nullptr;  // as of PcgradCuda
  const int64_t* key = nullptr;
  double* gram = nullptr;     // [B, T, T], written; or null
  double* w = nullptr;        // [B, T]: written where both K and w are wanted, else read; or null, and nothing is combined
  int32_t* broken = nullptr;  // [B]: whether K is not finite; or null
  int32_t window = kWholeSample;
  bool accumulate = false;

  GS_HOST_DEVICE bool solves() const { return gram && w; }
};

static_assert(sizeof(Table) + sizeof(SamplesCuda) <= 4096, "the parameters of a launch");

GS_HOST_DEVICE constexpr int64_t sample_words(int64_t numel, int64_t element_bytes) {
  return (numel * element_bytes + kSampleWord - 1) / kSampleWord;
}

// Tiles of pairs of tasks.
GS_HOST_DEVICE constexpr int sample_tiles(int tasks) {
  const int rows = (tasks + kSampleTile - 1) / kSampleTile;
  return tasks <= kSampleTile ? 1 : rows * (rows + 1) / 2;
}

// Of one block, at most kMaxSampleTiles: the number depends on T and N alone, and with it the order of additions. A sample of 4
// KB takes a warp; where there are fewer tiles than warps, several share one and take parts of the coordinates.
constexpr int sample_warps(int tasks, int64_t numel) {
  const int tiles = std::min(sample_tiles(tasks), kMaxSampleTiles);
  int warps = 1;
  while (warps < 8 && int64_t(warps) * 1024 < tasks * numel) warps *= 2;
  return tiles * std::max(1, warps / tiles);
}

// Blocks a sample where K is found: each takes kMaxSampleTiles of the tiles. The fused kernel has one.
constexpr int sample_panels(int tasks) { return (sample_tiles(tasks) + kMaxSampleTiles - 1) / kMaxSampleTiles; }

// What the block keeps besides rows: w [T]; and where it solves K [T, T], c [T, T], and r and the order of each warp [warps, T].
GS_HOST_DEVICE constexpr int64_t sample_memory(int tasks, int warps, bool solves) {
  const int64_t square = int64_t(tasks) * tasks;
  const int64_t bytes = 8 * int64_t(tasks) + (solves ? 16 * square + 12 * int64_t(warps) * tasks : 0);
  return (bytes + kSampleWord - 1) / kSampleWord * kSampleWord;
}

struct SamplePlan {
  int32_t window;  // words of each row at a time, or kWholeSample
  int64_t shared;  // bytes
};

// Whole samples where they fit `most` bytes: what the device gives a block that asks. Else as much of every row as fits
// kSampleShared. `words`: of a row over all pieces. The bits of K do not depend on it.
constexpr SamplePlan sample_plan(int tasks, int64_t words, int64_t memory, int64_t most) {
  const int64_t whole = tasks * words * kSampleWord + memory;
  if (whole <= std::max(most, kSampleShared)) return {kWholeSample, whole};
  const int64_t window = (kSampleShared - memory) / (int64_t(tasks) * kSampleWord);
  return {int32_t(window), tasks * window * kSampleWord + memory};
}

// The rows of a batch with the pieces of one sample, for the table: rows begin with sample 0, and the others follow.
inline Rows sample_rows(const Rows& rows, int64_t samples) {
  Rows result = rows;
  result.numel = 0;
  for (Piece& piece : result.pieces) {
    piece = Piece{samples > 0 ? piece.numel / samples : 0, result.numel};
    result.numel += piece.numel;
  }
  return result;
}

// Whether K, w and what they combine are found in one launch: K is added up in the type of the rows alone, so that it has the
// bits of a K by itself.
inline bool samples_fuse(const RowTable& table) {
  return table.tasks() <= kSharedTasks && table.rows_float64() == table.any_float64();
}

// The stages that `call` asks for by what it is given, for a table of `sample_rows`; K and w in one launch where samples_fuse.
// `stream` is a cudaStream_t. Launch errors are left for the caller to collect.
void samples_cuda(const RowTable& table, SamplesCuda call, void* stream);

// Advances the key of random orders, unless some K is not finite; after all samples have read it.
void advance_samples_cuda(const int32_t* broken /* [B] */, int64_t samples, int64_t* key, void* stream);

}  // namespace gradsurgery
