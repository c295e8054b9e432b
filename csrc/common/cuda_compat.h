// CUDA as the kernels use it: from nvcc, or under GS_EMULATE_CUDA from the tests' emulator, which runs the same text on the CPU.
#pragma once

#include <utility>

#include "macros.h"

#if defined(GS_EMULATE_CUDA)
#include "simt.h"  // tests/cuda/emulator
#else
#include <cooperative_groups.h>
#include <cuda_runtime.h>

// `stream` is a cudaStream_t that travelled as void*, so that host headers stay free of CUDA.
#define GS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
// For kernels with barriers of the grid: all blocks run at once. CUDA graphs capture such a launch, too.
#define GS_LAUNCH_COOPERATIVE(kernel, grid, block, shared_bytes, stream, ...) \
  gradsurgery::launch_cooperative(kernel, grid, block, shared_bytes, static_cast<cudaStream_t>(stream), __VA_ARGS__)
#define GS_SHARED(Type, name, count) __shared__ Type name[count]
#define GS_DYNAMIC_SHARED(name) extern __shared__ __align__(16) char name[]
// Barriers carry a name by which the tests remove them, one at a time, to see that its absence is noticed.
// That of the grid counts in a word that the driver keeps for each launch: streams and graphs share nothing. What a thread wrote
// to device memory before it, all threads read after it.
#define GS_GRID_BARRIER(name) cooperative_groups::this_grid().sync()
#define GS_BLOCK_BARRIER(name) __syncthreads()
#define GS_WARP_BARRIER(name) __syncwarp()
// Before an access that must be aligned to its size. Pointers that come out of a table are not known to point to device memory;
// accesses that know are cheaper.
#define GS_GLOBAL_ACCESS(pointer, bytes) __builtin_assume(__isGlobal(pointer))
#endif

namespace gradsurgery {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

#if !defined(GS_EMULATE_CUDA)
template <class... Parameters, class... Arguments>
cudaError_t launch_cooperative(void (*kernel)(Parameters...), unsigned grid, unsigned block, size_t shared_bytes,
                               cudaStream_t stream, Arguments&&... arguments) {
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &together;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
}
#endif

}  // namespace gradsurgery
