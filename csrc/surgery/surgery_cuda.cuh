// The kernel that does all of surgery: gram's sweep, the weights, and combine's sweep backwards.
#pragma once

#include "../combine/combine_cuda.cuh"
#include "../common/cuda_kept.cuh"
#include "../gram/gram_cuda.cuh"
#include "../weights/pcgrad_cuda.cuh"
#include "surgery_cuda.h"

namespace gradsurgery {

static_assert(kFusedThreads == kVectorThreads && kGramThreads == kVectorThreads && kCombineThreads == kVectorThreads,
              "both sweeps take a chunk in the same steps");

struct FusedCall {
  PcgradCuda problem;
  double* partial;  // [pairs, problem.blocks]
  int32_t slots;
  bool accumulate;
};
static_assert(sizeof(Table) + sizeof(FusedCall) <= 4096, "the parameters of a launch");

// For up to T tasks. A block takes the shares of several of gram_small's, so that K has the same bits whatever the grid.
template <int T, class Run>
__global__ void __launch_bounds__(kFusedThreads, 2)
    pcgrad_fused(const __grid_constant__ Table table, const __grid_constant__ FusedCall call) {
  GS_DYNAMIC_SHARED(kept_memory);
  KeptVectors kept(kept_memory, call.slots, table.tasks);
  const int shares = call.problem.blocks, step = int(gridDim.x), first = int(blockIdx.x);
  for (int share = first; share < shares; share += step) {
    gram_share<T, Run>(table, share, shares, kept, call.partial);
    GS_BLOCK_BARRIER(fused_next_share);  // the sums of the warps have been read
  }
  GS_GRID_BARRIER(fused_partials);

  constexpr int kWarps = kFusedThreads / kWarp, kPairs = T * (T + 1) / 2;
  GS_SHARED(double, solver_memory, pcgrad_memory(T, kWarps) / 8);
  if (blockIdx.x == 0) pcgrad_group<(kPairs + kWarps - 1) / kWarps>(call.problem, 0, reinterpret_cast<char*>(solver_memory));
  GS_GRID_BARRIER(fused_weights);

  for (int share = first + (shares - 1 - first) / step * step; share >= first; share -= step)
    for (int c = share + (table.chunks - 1 - share) / shares * shares; c >= share; c -= shares) {
      const Chunk chunk = find_chunk(table, c);
      combine_chunk<T, false, Run>(table, chunk, [&] { return call.problem.w; }, call.accumulate, kept);
    }
}

}  // namespace gradsurgery
