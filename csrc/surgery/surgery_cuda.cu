#include "../common/cuda_upload.cuh"
#include "surgery_cuda.cuh"

namespace gradsurgery {
namespace {

using FusedKernel = void (*)(Table, FusedCall);

// A few tasks fewer than the kernel has room for cost registers, but no memory traffic.
constexpr FusedKernel fused_kernel(int tasks) {
  return tasks <= 2   ? pcgrad_fused<2, float>
         : tasks <= 4 ? pcgrad_fused<4, float>
         : tasks <= 6 ? pcgrad_fused<6, float>
         : tasks <= 8 ? pcgrad_fused<8, float>
                      : nullptr;
}

DeviceLimits limits_of(FusedKernel kernel) {
  DeviceLimits limits;
  if (!kernel) return limits;
  int device = 0;
  cudaGetDevice(&device);
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    cudaDeviceGetAttribute(&value, which, device);
    return value;
  };
  cudaFuncAttributes of_kernel{};
  cudaFuncGetAttributes(&of_kernel, kernel);
  limits.cooperative = attribute(cudaDevAttrCooperativeLaunch) != 0;
  limits.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  limits.shared_multiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  limits.shared_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  limits.shared_reserved = attribute(cudaDevAttrReservedSharedMemoryPerBlock);
  limits.shared_static = int(of_kernel.sharedSizeBytes);
  limits.l2 = attribute(cudaDevAttrL2CacheSize);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&limits.blocks, kernel, kFusedThreads, 0);
  return limits;
}

}  // namespace

FusedLaunch fused_launch(const FusedProblem& problem, const DeviceLimits& device) {
  FusedLaunch launch;
  if (problem.tasks > kSmallTasks || problem.groups > 1 || problem.float64) return launch;
  if (!device.cooperative || device.blocks == 0) return launch;
  const int64_t on_chip = device.l2 + int64_t(device.multiprocessors) * device.shared_multiprocessor;
  if (problem.numel * problem.tasks * 4 > kTimesOnChip * on_chip) return launch;

  const int shares = gram_launch(problem.tasks, problem.chunks, 1).blocks;
  const auto ceil = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  launch.blocks = std::clamp(shares, 1, device.blocks * device.multiprocessors);
  // Few blocks have a multiprocessor's shared memory for themselves.
  const int together = int(ceil(launch.blocks, device.multiprocessors));
  const int shared = std::min(device.shared_block, device.shared_multiprocessor / together - device.shared_reserved);
  const int64_t room = std::max(0, shared - device.shared_static) / slot_bytes(problem.tasks);
  const int64_t chunks = shares == 0 ? 0 : ceil(shares, launch.blocks) * ceil(problem.chunks, shares);  // of a block, at most
  launch.slots = int(std::min(room, chunks * chunk_slots(problem.chunk_length / kVector<float>)));
  launch.shared_bytes = launch.slots * slot_bytes(problem.tasks);
  return launch;
}

FusedLaunch fused_launch_cuda(const RowTable& table, int64_t numel) {
  const FusedKernel kernel = fused_kernel(table.tasks());
  const DeviceLimits limits = limits_of(kernel);
  const FusedProblem problem{table.tasks(), table.groups(),     table.chunks(), table.parameter().chunk_length,
                             numel,         table.any_float64()};
  FusedLaunch launch = fused_launch(problem, limits);
  if (launch.blocks == 0) return launch;
  // Always as much as there is, so that calls of other threads do not matter.
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limits.shared_block - limits.shared_static);
  int blocks = 0;  // the last word on how many fit
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kFusedThreads, size_t(launch.shared_bytes));
  launch.blocks = std::min(launch.blocks, blocks * limits.multiprocessors);
  return launch;
}

void pcgrad_fused_cuda(RowTable& table, const FusedLaunch& launch, PcgradCuda problem, double* partial, bool accumulate,
                       void* stream) {
  upload(table, stream);
  problem.partial = partial;
  problem.blocks = gram_launch(table).blocks;
  const FusedCall call{problem, partial, launch.slots, accumulate};
  GS_LAUNCH_COOPERATIVE(fused_kernel(table.tasks()), unsigned(launch.blocks), kFusedThreads, size_t(launch.shared_bytes), stream,
                        table.parameter(), call);
}

}  // namespace gradsurgery
