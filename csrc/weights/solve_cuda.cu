#include "solve_cuda.cuh"
#include "solvers.h"

namespace gradsurgery {
namespace {

struct CudaSolver {
  void (*kernel)(SolveCuda);
  int64_t (*room)(int64_t tasks);
};

template <class Solver>
int64_t room_of(int64_t tasks) {
  return Solver::room(tasks);
}

constexpr CudaSolver kCudaSolvers[] = {
#define GS_CUDA_SOLVER(Solver) CudaSolver{solve_weights<Solver>, room_of<Solver>},
    GS_FOR_EACH_SOLVER(GS_CUDA_SOLVER)
#undef GS_CUDA_SOLVER
};

}  // namespace

int64_t solve_room_cuda(int solver, int tasks, int64_t state_size) { return kCudaSolvers[solver].room(tasks) + state_size; }

void solve_cuda(int solver, const SolveCuda& call, void* stream) {
  const int64_t square = int64_t(call.problem.tasks) * call.problem.tasks;
  if (call.broken) GS_LAUNCH(find_broken, 1, kCheckThreads, 0, stream, call.problem.gram, call.groups * square, call.broken);
  const size_t shared = call.scratch ? 0 : size_t(call.room) * 8;
  GS_LAUNCH(kCudaSolvers[solver].kernel, unsigned(call.groups), kWarp, shared, stream, call);
  if (call.key) GS_LAUNCH(advance_key, 1, 1, 0, stream, call.broken, call.key);
}

}  // namespace gradsurgery
