#include "pcgrad_cuda.cuh"

namespace gradsurgery {

void pcgrad_weights_cuda(const PcgradCuda& problem, void* stream) {
  const bool fused = problem.partial != nullptr;
  const int warps = pcgrad_warps(problem.tasks, fused);
  const int64_t shared = problem.scratch ? 0 : pcgrad_memory(problem.tasks, warps);
  GS_LAUNCH(pcgrad_solve, unsigned(problem.groups), warps * kWarp, size_t(shared), stream, problem);
  if (problem.groups > 1 && problem.options.kind == OrderKind::random)
    GS_LAUNCH(pcgrad_advance, 1, kMaxPcgradThreads, 0, stream, problem);
}

}  // namespace gradsurgery
