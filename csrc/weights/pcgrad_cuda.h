// K -> w for PCGrad on a CUDA device, without the host ever seeing K.
#pragma once

#include <cstdint>

#include "pcgrad.h"

namespace gradsurgery {

constexpr int kSharedTasks = 32;  // up to here everything lies in shared memory
constexpr int kFusedTasks = 8;    // up to here the solver adds the Gram kernel's partial sums itself, which saves a launch

struct PcgradCuda {
  int groups = 1;
  int tasks = 0;
  PcgradOptions options;
  const int64_t* order = nullptr;   // [T, T] for OrderKind::given, shared by the groups
  int64_t* key = nullptr;           // (seed, step) for OrderKind::random; the step is advanced unless some K is not finite
  double* gram = nullptr;           // [G, T, T]: read, or written when there are partial sums
  const double* partial = nullptr;  // [pairs, blocks] of gram_partials_cuda, or null; only one group, and up to kFusedTasks
  int blocks = 0;
  char* scratch = nullptr;  // [G, pcgrad_scratch_bytes], in device memory
  double* w = nullptr;      // [G, T]; NaN for a non-finite K or an invalid order
};

// One block a group; a warp walks the row of a task, or adds up a pair of tasks.
GS_HOST_DEVICE constexpr int pcgrad_warps(int tasks, bool fused) {
  const int wanted = fused ? tasks * (tasks + 1) / 2 : tasks;
  return wanted < 32 ? wanted : 32;
}

// What the solver keeps: c [T, T]; r and the order of each warp's row [warps, T]; up to kSharedTasks also K [T, T].
GS_HOST_DEVICE constexpr int64_t pcgrad_memory(int tasks, int64_t warps) {
  const int64_t grams = tasks <= kSharedTasks ? 2 : 1;
  return 8 * (grams * tasks * tasks + warps * tasks) + 4 * warps * tasks;
}

// Of that, in device memory instead of shared memory; a multiple of eight.
GS_HOST_DEVICE constexpr int64_t pcgrad_scratch_bytes(int tasks) {
  return tasks <= kSharedTasks ? 0 : pcgrad_memory(tasks, pcgrad_warps(tasks, false));
}

// `stream` is a cudaStream_t. Launch errors are left for the caller to collect.
void pcgrad_weights_cuda(const PcgradCuda& problem, void* stream);

}  // namespace gradsurgery
