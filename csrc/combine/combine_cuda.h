// out = sum_t w_t g_t (+ out), with the weights of each piece's group, on a CUDA device.
#pragma once

#include "../common/cuda_table.h"

namespace gradsurgery {

constexpr int kCombineThreads = 256;

// One block a chunk.
constexpr int combine_blocks(int chunks) { return chunks; }

// Sums in float32 (float64 as soon as one tensor of the call is float64) and rounds once. An output may be one of the rows;
// absent rows add nothing, a piece without any row gives zeros. `stream` is a cudaStream_t.
void combine_cuda(const RowTable& table, const double* weights /* [G, T], on the device */, bool accumulate, void* stream);

}  // namespace gradsurgery
