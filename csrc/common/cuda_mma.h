// Products of small matrices of 16-bit elements, which a warp computes together.
#pragma once

#include "cuda_elements.h"

#if defined(GS_EMULATE_CUDA)
#include "shuffles.h"  // tests/cuda/emulator
#endif

namespace gradsurgery {

// sums += A B for A [16, 16] and B [16, 8], called by all lanes of a warp. The elements of each lane, with g = lane / 4 and
// t = lane % 4 (PTX ISA, "Matrix fragments for mma.m16n8k16"):
//   a      rows g, g + 8, g, g + 8 of A, at columns 2t and 2t + 1 in the first two words, 2t + 8 and 2t + 9 in the others
//   b      column g of B, at rows 2t and 2t + 1, then 2t + 8 and 2t + 9
//   sums   (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
//
// A product of two such elements is exact in float32, but for fp32's own range. From sm_80 on tensor cores add the 16 products to
// the sum; in which order, and where they round or cut off, is the hardware's and may differ from one generation to the next: the
// same bits in every run, but not on all GPUs. Older GPUs, and the tests' emulator, round every addition, k by k.
template <class Element>
__device__ __forceinline__ void multiply_add_16x8x16(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(sizeof(Element) == 2, "bfloat16 or float16");
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<Element, BFloat16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  const int lane = int(threadIdx.x) % kWarp, t = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint64_t rows = a[2 * half] | uint64_t(a[2 * half + 1]) << 32;
#pragma unroll
    for (int from = 0; from < 4; ++from) {
      const uint64_t both = __shfl_sync(kAllLanes, rows, lane / 4 * 4 + from);
      uint32_t words[4] = {uint32_t(both), uint32_t(both >> 32)};  // rows g and g + 8, columns 2t and 2t + 1
#pragma unroll
      for (int column = 0; column < 2; ++column) words[2 + column] = __shfl_sync(kAllLanes, b[half], 4 * (2 * t + column) + from);
      Pack<Element, 2> x[4];
      memcpy(x, words, sizeof words);
#pragma unroll
      for (int k = 0; k < 2; ++k)
#pragma unroll
        for (int s = 0; s < 4; ++s) sums[s] += convert<float>(x[s / 2].at[k]) * convert<float>(x[2 + s % 2].at[k]);
    }
  }
#endif
}

}  // namespace gradsurgery
