// K -> w by a solver's position in the list, on a CUDA device, without the host ever seeing K.
#pragma once

#include <cstdint>

#include "solver.h"

namespace gradsurgery {

struct SolveCuda {
  Problem problem;  // of group 0; gram [G, T, T], state [G, state_size] and w [G, T] follow on
  double options[kMaxOptions] = {};
  int groups = 1;
  int64_t state_size = 0;
  int64_t room = 0;           // doubles of one group, its copy of the state included
  double* scratch = nullptr;  // [G, room] in device memory, or null: shared memory
  int64_t* key = nullptr;     // (seed, step); the step is advanced unless some K is not finite
  int32_t* broken = nullptr;  // [1]: whether some K is not finite; needed with a state or a key
  double* report = nullptr;   // [G, kReportFields]
};

// Doubles that a group needs, and whether they are few enough for shared memory.
int64_t solve_room_cuda(int solver, int tasks, int64_t state_size);
constexpr bool fits_shared_memory(int64_t doubles) { return doubles * 8 <= 40 * 1024; }

// `stream` is a cudaStream_t. Launch errors are left for the caller to collect.
void solve_cuda(int solver, const SolveCuda& call, void* stream);

}  // namespace gradsurgery
