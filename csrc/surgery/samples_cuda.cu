#include <map>
#include <mutex>

#include "samples_cuda.cuh"

namespace gradsurgery {
namespace {

using SampleKernel = void (*)(Table, SamplesCuda);

constexpr SampleKernel sample_kernel(int tasks) {
  return tasks <= 2   ? sample_surgery<2, false, float>
         : tasks <= 4 ? sample_surgery<4, false, float>
         : tasks <= 8 ? sample_surgery<8, false, float>
                      : sample_surgery<8, true, float>;
}

// Fewer of them for float64, which is rare.
constexpr SampleKernel sample_kernel_float64(int tasks) {
  return tasks <= 4   ? sample_surgery<4, false, double>
         : tasks <= 8 ? sample_surgery<8, false, double>
                      : sample_surgery<8, true, double>;
}

// Dynamic shared memory that a block of a kernel may have on the current device. All there is is asked for, once: what one thread
// asks for holds for the launches of all.
int64_t most_shared_memory(SampleKernel kernel) {
  constexpr int kKept = 48 * 1024 - int(kSampleShared);  // for what the kernel itself declares
  static std::mutex mutex;
  static std::map<std::pair<SampleKernel, int>, int64_t> known;
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return kSampleShared;
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto found = known.find({kernel, device}); found != known.end()) return found->second;
  if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess ||
      (bytes - kKept > kSampleShared &&
       cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes - kKept) != cudaSuccess)) {
    cudaGetLastError();  // not the caller's: without the permission samples come in windows
    return kSampleShared;
  }
  return known[{kernel, device}] = std::max<int64_t>(bytes - kKept, kSampleShared);
}

}  // namespace

void samples_cuda(const RowTable& table, SamplesCuda call, void* stream) {
  if (call.samples == 0) return;
  const PieceEntry* const entries = table.entries();
  int64_t numel = 0, words = 0;
  for (int p = 0; p < table.parameter().pieces; ++p) {
    numel += entries[p].numel;
    words += sample_words(entries[p].numel, size_of(entries[p].scalar));
  }
  const int tasks = table.tasks(), warps = sample_warps(tasks, numel);
  const bool float64 = call.gram ? table.rows_float64() : table.any_float64();
  const SampleKernel kernel = float64 ? sample_kernel_float64(tasks) : sample_kernel(tasks);
  const SamplePlan plan = sample_plan(tasks, words, sample_memory(tasks, warps, call.solves()), most_shared_memory(kernel));
  call.window = plan.window;
  const unsigned panels = call.gram ? sample_panels(tasks) : 1;
  GS_LAUNCH(kernel, dim3(unsigned(call.samples), panels), warps * kWarp, size_t(plan.shared), stream, table.parameter(), call);
}

void advance_samples_cuda(const int32_t* broken, int64_t samples, int64_t* key, void* stream) {
  GS_LAUNCH(sample_advance, 1, kAdvanceThreads, 0, stream, broken, samples, key);
}

}  // namespace gradsurgery
