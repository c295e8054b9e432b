#include <map>
#include <mutex>
#include <optional>

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

// Of a kernel on a device, which is also told that its blocks may use all the shared memory there is; none where the runtime
// does not answer.
std::optional<DeviceLimits> ask(FusedKernel kernel, int device) {
  DeviceLimits limits;
  bool answered = true;
  const auto check = [&](cudaError_t code) { answered = answered && code == cudaSuccess; };
  const auto attribute = [&](cudaDeviceAttr which) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, which, device));
    return value;
  };
  const auto resident = [&](int shared) {
    int blocks = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kFusedThreads, size_t(shared)));
    return blocks;
  };
  cudaFuncAttributes of_kernel{};
  check(cudaFuncGetAttributes(&of_kernel, kernel));
  limits.cooperative = attribute(cudaDevAttrCooperativeLaunch) != 0;
  limits.multiprocessors = attribute(cudaDevAttrMultiProcessorCount);
  limits.shared_multiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  limits.shared_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  limits.shared_reserved = attribute(cudaDevAttrReservedSharedMemoryPerBlock);
  limits.shared_static = int(of_kernel.sharedSizeBytes);
  limits.l2 = attribute(cudaDevAttrL2CacheSize);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limits.shared_block - limits.shared_static));
  // So many that each smaller number of them fits, too, with the shared memory that it would get.
  const int most = resident(0);
  while (limits.blocks < most && resident(shared_room(limits, limits.blocks + 1)) > limits.blocks) ++limits.blocks;
  if (answered) return limits;
  cudaGetLastError();  // not the caller's: several launches do, and the next call asks again
  return std::nullopt;
}

// What is known of the current device: together the questions take as long as a launch.
class KnownLimits {
 public:
  static DeviceLimits of(FusedKernel kernel) {
    int device = 0;
    if (!kernel || cudaGetDevice(&device) != cudaSuccess) return {};
    const std::lock_guard<std::mutex> lock(mutex());
    if (const auto found = known().find({kernel, device}); found != known().end()) return found->second;
    const std::optional<DeviceLimits> limits = ask(kernel, device);
    return limits ? known()[{kernel, device}] = *limits : DeviceLimits{};
  }

  // The device has refused what its limits allow.
  static void refuse(FusedKernel kernel) {
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return;
    const std::lock_guard<std::mutex> lock(mutex());
    known()[{kernel, device}] = DeviceLimits{};
  }

 private:
  static std::mutex& mutex() {
    static std::mutex it;
    return it;
  }
  static std::map<std::pair<FusedKernel, int>, DeviceLimits>& known() {
    static std::map<std::pair<FusedKernel, int>, DeviceLimits> it;
    return it;
  }
};

}  // namespace

int shared_room(const DeviceLimits& device, int blocks) {
  constexpr int kGranule = 1024;  // memory is allotted in units that divide this
  const int share = device.shared_multiprocessor / blocks / kGranule * kGranule - device.shared_reserved;
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
  return fused_launch(problem, KnownLimits::of(kernel));
}

bool pcgrad_fused_cuda(const RowTable& table, const FusedLaunch& launch, PcgradCuda problem, double* partial, bool accumulate,
                       void* stream) {
  problem.partial = partial;
  problem.blocks = gram_launch(table).blocks;
  const FusedCall call{problem, partial, launch.slots, accumulate};
  const FusedKernel kernel = fused_kernel(table.tasks());
  const cudaError_t code = GS_LAUNCH_COOPERATIVE(kernel, unsigned(launch.blocks), kFusedThreads, size_t(launch.shared_bytes),
                                                 stream, table.parameter(), call);
  if (code != cudaErrorCooperativeLaunchTooLarge && code != cudaErrorNotSupported) return true;
  cudaGetLastError();  // nothing has run
  KnownLimits::refuse(kernel);
  return false;
}

}  // namespace gradsurgery
