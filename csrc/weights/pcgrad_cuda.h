// K -> w for PCGrad on a CUDA device, without the host ever seeing K.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pcgrad.h"

namespace gradsurgery {

constexpr int kSharedTasks = 32;  // up to here everything lies in shared memory
constexpr int kFusedTasks = 8;    // up to here the solver adds the Gram kernel's partial sums itself, which saves a launch

struct PcgradCuda {
  int tasks = 0;
  PcgradOptions options;
  const int64_t* order = nullptr;   // [T, T] for OrderKind::given
  int64_t* key = nullptr;           // (seed, step) for OrderKind::random; the step is advanced unless K is not finite
  double* gram = nullptr;           // [T, T]: read, or written when there are partial sums
  const double* partial = nullptr;  // [pairs, blocks] of gram_partials_cuda, or null; only up to kFusedTasks
  int blocks = 0;
  char* scratch = nullptr;  // pcgrad_scratch_bytes, in device memory
  double* w = nullptr;      // [T]; NaN for a non-finite K or an invalid order
};

// One block; a warp walks the row of a task, or adds up a pair of tasks.
constexpr int pcgrad_warps(int tasks, bool fused) { return std::min(fused ? tasks * (tasks + 1) / 2 : tasks, 32); }

// What the solver keeps: c [T, T]; r and the order of each warp's row [warps, T]; up to kSharedTasks also K [T, T].
constexpr int64_t pcgrad_memory(int tasks, bool fused) {
  const int64_t warps = pcgrad_warps(tasks, fused), grams = tasks <= kSharedTasks ? 2 : 1;
  return 8 * (grams * tasks * tasks + warps * tasks) + 4 * warps * tasks;
}

// Of that, in device memory instead of shared memory.
constexpr int64_t pcgrad_scratch_bytes(int tasks) { return tasks <= kSharedTasks ? 0 : pcgrad_memory(tasks, false); }

// `stream` is a cudaStream_t. Launch errors are left for the caller to collect.
void pcgrad_weights_cuda(const PcgradCuda& problem, void* stream);

}  // namespace gradsurgery
