// What the compilers disagree on, in one place. Free of torch, so that kernels compile alone and under the CUDA emulator.
#pragma once

#if defined(__CUDACC__)
#define GS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define GS_HOST_DEVICE inline
#endif

#if defined(_MSC_VER)
#define GS_RESTRICT __restrict
#else
#define GS_RESTRICT __restrict__
#endif
