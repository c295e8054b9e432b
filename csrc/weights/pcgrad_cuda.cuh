// The PCGrad solver: one block a group, one warp a task, the scan itself shared with the CPU (pcgrad.h).
#pragma once

#include "../common/cuda_compat.h"
#include "../common/cuda_reduce.cuh"
#include "pcgrad_cuda.h"
#include "solve_cuda.cuh"

namespace gradsurgery {

constexpr int kMaxPcgradThreads = 1024;

// What a block needs to find the weights of one K.
struct PcgradScan {
  const PcgradOptions& options;
  const int64_t* given;  // [T, T] for OrderKind::given
  const int64_t* key;    // (seed, step) for OrderKind::random
  int tasks;
  uint32_t group;
  const double* gram;  // [T, T]
  double* c;           // [T, T], written: the coefficients of each task's projected gradient
  double* dots;        // [warps, T]
  int32_t* orders;     // [warps, T]

  // The order of task i, written by the warp that walks it.
  __device__ __forceinline__ void write_order(int i, int32_t* order /* [T] */) const {
    const int lane = int(threadIdx.x) % kWarp;
    if (options.kind == OrderKind::given) {
      for (int k = lane; k < tasks; k += kWarp) {
        const int64_t j = given[int64_t(i) * tasks + k];
        order[k] = j < 0 || j >= tasks ? -1 : int32_t(j);  // pcgrad_row refuses -1
      }
    } else if (options.kind == OrderKind::random && lane == 0) {
      pcgrad_random_order(key[0], key[1], options.group + group, i, tasks, order);
    }
  }

  // w_j, once run() is done.
  __device__ __forceinline__ double weight(int j, bool refused) const {
    double sum = 0.0;
    if (!refused)
      for (int i = 0; i < tasks; ++i) sum += c[i * tasks + j];
    return refused ? nan("") : options.scale * sum;
  }

  // By all threads of a block; K is complete after the first barrier. Whether K is finite, and whether there are no weights: as
  // it is not, or an order is invalid.
  __device__ __forceinline__ void run(bool& finite, bool& refuse) const {
    const int square = tasks * tasks, thread = int(threadIdx.x), threads = int(blockDim.x);
    const int warp = thread / kWarp, warps = threads / kWarp;
    GS_SHARED(int, refused, 1);
    if (thread == 0) *refused = 0;
    GS_BLOCK_BARRIER(pcgrad_gram);
    finite = true;
    for (int k = thread; k < square; k += threads) finite = finite && isfinite(gram[k]);
    if (!finite) *refused = 1;
    GS_BLOCK_BARRIER(pcgrad_finite);
    finite = *refused == 0;
    GS_BLOCK_BARRIER(pcgrad_refused);  // an invalid order sets it again: without this, lanes of one warp could part below
    if (finite) {
      for (int i = warp; i < tasks; i += warps) {
        int32_t* const order = options.kind == OrderKind::ascending ? nullptr : orders + warp * tasks;
        if (order) write_order(i, order);  // seen by all lanes after the first barrier of pcgrad_row
        if (!pcgrad_row(gram, tasks, i, order, options.include_self, dots + warp * tasks, c + i * tasks, WarpLanes{}))
          *refused = 1;
        GS_WARP_BARRIER(pcgrad_next);  // a lane may still be reading the end of this order
      }
    }
    GS_BLOCK_BARRIER(pcgrad_rows);
    refuse = *refused != 0;
  }
};

// One group, by all threads of a block, of which a warp adds up to kPairs pairs of tasks. shared: pcgrad_memory of the block's
// warps, where problem.scratch is null.
template <int kPairs>
__device__ __forceinline__ void pcgrad_group(const PcgradCuda& problem, int group, char* shared) {
  const int tasks = problem.tasks, square = tasks * tasks;
  const int thread = int(threadIdx.x), threads = int(blockDim.x);
  const int lane = thread % kWarp, warp = thread / kWarp, warps = threads / kWarp;
  char* const scratch = problem.scratch ? problem.scratch + group * pcgrad_scratch_bytes(tasks) : shared;
  double* const given_gram = problem.gram + int64_t(group) * square;
  double* const c = reinterpret_cast<double*>(scratch);  // [T, T]
  double* const dots = c + square;                       // [warps, T]
  double* const shared_gram = dots + warps * tasks;      // [T, T]
  const double* const gram = problem.scratch ? given_gram : shared_gram;
  int32_t* const orders = reinterpret_cast<int32_t*>(problem.scratch ? shared_gram : shared_gram + square);  // [warps, T]

  if (problem.partial) {
    const double* partial[kPairs];
    double sums[kPairs];
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int pair = warp + p * warps;
      partial[p] = pair < tasks * (tasks + 1) / 2 ? problem.partial + int64_t(pair) * problem.blocks : nullptr;
    }
    sum_partials(partial, problem.blocks, sums);
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      if (!partial[p] || lane != 0) continue;
      int i, j;
      pair_at(warp + p * warps, tasks, i, j);
      shared_gram[i * tasks + j] = shared_gram[j * tasks + i] = sums[p];
      given_gram[i * tasks + j] = given_gram[j * tasks + i] = sums[p];
    }
  } else if (!problem.scratch) {
    for (int k = thread; k < square; k += threads) shared_gram[k] = given_gram[k];
  }

  const PcgradScan scan{problem.options, problem.order, problem.key, tasks, uint32_t(group), gram, c, dots, orders};
  bool finite, refuse;
  scan.run(finite, refuse);
  for (int j = thread; j < tasks; j += threads) problem.w[int64_t(group) * tasks + j] = scan.weight(j, refuse);
  // Other groups may still have to read the key: pcgrad_advance follows.
  if (thread == 0 && !refuse && problem.options.kind == OrderKind::random && problem.groups == 1) problem.key[1] += 1;
}

static __global__ void __launch_bounds__(kMaxPcgradThreads) pcgrad_solve(const __grid_constant__ PcgradCuda problem) {
  GS_DYNAMIC_SHARED(shared);
  constexpr int kPairs = kFusedTasks * (kFusedTasks + 1) / 2, kWarps = pcgrad_warps(kFusedTasks, true);
  pcgrad_group<(kPairs + kWarps - 1) / kWarps>(problem, int(blockIdx.x), shared);
}

// Advances the key of several groups, unless some K is not finite.
static __global__ void __launch_bounds__(kMaxPcgradThreads) pcgrad_advance(const __grid_constant__ PcgradCuda problem) {
  GS_SHARED(int, refused, 1);
  if (threadIdx.x == 0) *refused = 0;
  GS_BLOCK_BARRIER(pcgrad_advance_start);
  bool finite = true;
  const int64_t count = int64_t(problem.groups) * problem.tasks * problem.tasks;
  for (int64_t k = threadIdx.x; k < count; k += blockDim.x) finite = finite && isfinite(problem.gram[k]);
  if (!finite) *refused = 1;
  GS_BLOCK_BARRIER(pcgrad_advance_finite);
  if (threadIdx.x == 0 && *refused == 0) problem.key[1] += 1;
}

}  // namespace gradsurgery
