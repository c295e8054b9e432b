#include "pcgrad_cuda.cuh"

namespace gradsurgery {

void pcgrad_weights_cuda(const PcgradCuda& problem, void* stream) {
  const bool fused = problem.partial != nullptr;
  const int64_t shared = problem.scratch ? 0 : pcgrad_memory(problem.tasks, fused);
  GS_LAUNCH(pcgrad_solve, 1, pcgrad_warps(problem.tasks, fused) * kWarp, size_t(shared), stream, problem);
}

}  // namespace gradsurgery
