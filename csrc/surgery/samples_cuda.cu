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

// Dynamic shared memory that a block may have on the current device if it asks.
int64_t most_shared_memory() {
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
    return kSampleShared;
  return bytes - (48 * 1024 - kSampleShared);
}

void allow_shared_memory(SampleKernel kernel, int64_t bytes) {
  if (bytes > kSampleShared) cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
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
  const SamplePlan plan = sample_plan(tasks, words, sample_memory(tasks, warps, call.solves()), most_shared_memory());
  call.window = plan.window;
  const bool float64 = call.gram ? table.rows_float64() : table.any_float64();
  const SampleKernel kernel = float64 ? sample_kernel_float64(tasks) : sample_kernel(tasks);
  allow_shared_memory(kernel, plan.shared);
  const unsigned panels = call.gram ? sample_panels(tasks) : 1;
  GS_LAUNCH(kernel, dim3(unsigned(call.samples), panels), warps * kWarp, size_t(plan.shared), stream, table.parameter(), call);
}

void advance_samples_cuda(const int32_t* broken, int64_t samples, int64_t* key, void* stream) {
  GS_LAUNCH(sample_advance, 1, kAdvanceThreads, 0, stream, broken, samples, key);
}

}  // namespace gradsurgery
