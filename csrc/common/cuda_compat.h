// CUDA as the kernels use it: from nvcc, or under GS_EMULATE_CUDA from the tests' emulator, which runs the same text on the CPU.
#pragma once

#include "macros.h"

#if defined(GS_EMULATE_CUDA)
#include "simt.h"  // tests/cuda/emulator
#else
#include <cuda_runtime.h>

// `stream` is a cudaStream_t that travelled as void*, so that host headers stay free of CUDA.
#define GS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#define GS_SHARED(Type, name, count) __shared__ Type name[count]
#define GS_DYNAMIC_SHARED(name) extern __shared__ __align__(16) char name[]
// Barriers carry a name by which the tests remove them, one at a time, to see that its absence is noticed.
#define GS_BLOCK_BARRIER(name) __syncthreads()
#define GS_WARP_BARRIER(name) __syncwarp()
// Before an access that must be aligned to its size. Pointers that come out of a table are not known to point to device memory;
// accesses that know are cheaper.
#define GS_GLOBAL_ACCESS(pointer, bytes) __builtin_assume(__isGlobal(pointer))
#endif

namespace gradsurgery {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

}  // namespace gradsurgery
