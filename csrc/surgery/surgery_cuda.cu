#include <map>
#include <mutex>

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

// Of a kernel on the current device, which is also told that its blocks may use all the shared memory there is.
DeviceLimits ask(FusedKernel kernel, int device) {
  DeviceLimits limits;
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    cudaDeviceGetAttribute(&value, which, device);
    return value;
  };
  const auto resident = [&](int shared) {
    int blocks = 0;
    cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kFusedThreads, size_t(shared));
    return blocks;
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
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limits.shared_block - limits.shared_static);
  limits.blocks = resident(0);
  while (limits.blocks > 0 && resident(shared_room(limits, limits.blocks)) < limits.blocks) --limits.blocks;
  return limits;
}

// Asked once for each device and kernel: together the questions take as long as a launch.
DeviceLimits limits_of(FusedKernel kernel) {
  static std::mutex mutex;
  static std::map<std::pair<FusedKernel, int>, DeviceLimits> known;
  int device = 0;
  cudaGetDevice(&device);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [found, is_new] = known.try_emplace({kernel, device});
  if (is_new) found->second = ask(kernel, device);
  return found->second;
}

}  // namespace

int shared_room(const DeviceLimits& device, int blocks) {
  const int share = device.shared_multiprocessor / blocks - device.shared_reserved;
  return std::max(0, std::min(device.shared_block, share) - device.shared_static);
}

FusedLaunch fused_launch(const FusedProblem& problem, const DeviceLimits& device) {
  FusedLaunch launch;
  if (problem.tasks > kSmallTasks || problem.groups > 1 || problem.float64) return launch;
  if (!device.cooperative || device.blocks == 0) return launch;
  const int64_t on_chip = device.l2 + int64_t(device.multiprocessors) * device.shared_multiprocessor;
  constexpr int64_t kBytes = 4;  // of an element, at most
  if (problem.numel * problem.tasks * kBytes > kTimesOnChip * on_chip) return launch;

  const int shares = gram_launch(problem.tasks, problem.chunks, 1).blocks;
  const auto ceil = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  launch.blocks = std::clamp(shares, 1, device.blocks * device.multiprocessors);
  // Few blocks have a multiprocessor's shared memory for themselves.
  const int together = int(ceil(launch.blocks, device.multiprocessors));
  const int64_t room = shared_room(device, together) / slot_bytes(problem.tasks);
  const int64_t chunks = shares == 0 ? 0 : ceil(shares, launch.blocks) * ceil(problem.chunks, shares);  // of a block, at most
  launch.slots = int(std::min(room, chunks * chunk_slots(problem.chunk_length / kVector<float>)));
  launch.shared_bytes = launch.slots * slot_bytes(problem.tasks);
  return launch;
}

FusedLaunch fused_launch_cuda(const RowTable& table, int64_t numel) {
  const FusedKernel kernel = fused_kernel(table.tasks());
  const FusedProblem problem{table.tasks(), table.groups(),     table.chunks(), table.parameter().chunk_length,
                             numel,         table.any_float64()};
  return fused_launch(problem, kernel ? limits_of(kernel) : DeviceLimits{});
}

void pcgrad_fused_cuda(const RowTable& table, const FusedLaunch& launch, PcgradCuda problem, double* partial, bool accumulate,
                       void* stream) {
  problem.partial = partial;
  problem.blocks = gram_launch(table).blocks;
  const FusedCall call{problem, partial, launch.slots, accumulate};
  GS_LAUNCH_COOPERATIVE(fused_kernel(table.tasks()), unsigned(launch.blocks), kFusedThreads, size_t(launch.shared_bytes), stream,
                        table.parameter(), call);
}

}  // namespace gradsurgery
