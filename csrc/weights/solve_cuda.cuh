// One warp a group runs the text that the CPU runs with one lane.
#pragma once

#include "../common/cuda_compat.h"
#include "solve_cuda.h"

namespace gradsurgery {

// A warp as the solvers see it: lanes own every 32nd element.
struct WarpLanes {
  __device__ int begin() const { return int(threadIdx.x) % kWarp; }
  __device__ int step() const { return kWarp; }
  __device__ bool first() const { return int(threadIdx.x) % kWarp == 0; }
  __device__ void sync() const { GS_WARP_BARRIER(solver_lanes); }
};

constexpr int kCheckThreads = 256;

// Whether some K is not finite: before any group may change its state.
static __global__ void __launch_bounds__(kCheckThreads) find_broken(const double* gram, int64_t count, int32_t* broken) {
  GS_SHARED(int, found, 1);
  if (threadIdx.x == 0) *found = 0;
  GS_BLOCK_BARRIER(find_broken_start);
  bool finite = true;
  for (int64_t k = threadIdx.x; k < count; k += kCheckThreads) finite = finite && isfinite(gram[k]);
  if (!finite) *found = 1;
  GS_BLOCK_BARRIER(find_broken_end);
  if (threadIdx.x == 0) *broken = *found;
}

// After every group has read the key.
static __global__ void advance_key(const int32_t* broken, int64_t* key) {
  if (*broken == 0) key[1] += 1;
}

template <class Solver>
__global__ void __launch_bounds__(kWarp, 1) solve_weights(const __grid_constant__ SolveCuda call) {
  GS_DYNAMIC_SHARED(shared);
  GS_SHARED(int, refused, 1);
  const WarpLanes lanes;
  const int group = int(blockIdx.x), tasks = call.problem.tasks, square = tasks * tasks;
  Problem problem = call.problem;
  problem.options = call.options;
  problem.group = uint32_t(group);
  problem.key = call.key;
  problem.gram += int64_t(group) * square;
  problem.w += int64_t(group) * tasks;
  if (problem.state) problem.state += group * call.state_size;
  Arena arena(call.scratch ? call.scratch + group * call.room : reinterpret_cast<double*>(shared));

  if (lanes.first()) *refused = 0;
  lanes.sync();
  bool finite = true;
  for (int k = lanes.begin(); k < square; k += lanes.step()) finite = finite && isfinite(problem.gram[k]);
  if (!finite) *refused = 1;
  lanes.sync();
  if (problem.state && *call.broken != 0) {  // the step will be skipped: the memory stays as it is
    double* const copy = arena.doubles(call.state_size);
    for (int64_t k = lanes.begin(); k < call.state_size; k += lanes.step()) copy[k] = problem.state[k];
    lanes.sync();
    problem.state = copy;
  }
  Report said;
  if (*refused == 0) {
    said = Solver::solve(problem, arena, lanes);
  } else {
    for (int t = lanes.begin(); t < tasks; t += lanes.step()) problem.w[t] = nan("");
    said.converged = 0.0;
    said.stationary = -1.0;
  }
  if (lanes.first()) {
    double* const report = call.report + int64_t(group) * kReportFields;
    report[0] = said.converged;
    report[1] = said.stationary;
    report[2] = said.rank;
    report[3] = said.iterations;
  }
}

}  // namespace gradsurgery
