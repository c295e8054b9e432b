// Sums in float64 with a fixed order: the same bits in every run.
#pragma once

#include "cuda_compat.h"

namespace gradsurgery {

// Position of (i, j), i <= j, in an upper triangle stored row by row.
GS_HOST_DEVICE int64_t pair_index(int64_t i, int64_t j, int64_t tasks) { return i * tasks - i * (i - 1) / 2 + (j - i); }

// The inverse.
GS_HOST_DEVICE void pair_at(int64_t pair, int tasks, int& i, int& j) {
  i = 0;
  while (pair >= tasks - i) {
    pair -= tasks - i;
    ++i;
  }
  j = i + int(pair);
}

// Count sums over a warp, or over each group of Lanes in it, spread over its lanes: each keeps ceil(Count / Lanes) of them. add()
// takes every lane's own contributions and halves the list at every step of the butterfly, which costs Count exchanges instead of
// 5 * Count and keeps the float64 accumulators out of the registers of the caller's inner loop.
template <int Count, int Lanes = kWarp>
class WarpSums {
 public:
  // Called by all lanes of the warp.
  template <class Run>
  __device__ __forceinline__ void add(const Run (&values)[Count]) {
    double widened[Count];
#pragma unroll
    for (int k = 0; k < Count; ++k) widened[k] = double(values[k]);
    halve<Count, Lanes / 2>(widened);
  }

  __device__ __forceinline__ void store(double* sums /* [Count] */) const {
    int first = 0, limit = Count, count = Count;
#pragma unroll
    for (int mask = Lanes / 2; mask > 0; mask /= 2) {
      count = (count + 1) / 2;
      if (lane() & mask)
        first += count;
      else
        limit = limit < first + count ? limit : first + count;
    }
#pragma unroll
    for (int k = 0; k < kKept; ++k)
      if (first + k < limit) sums[first + k] = kept_[k];
  }

 private:
  static constexpr int kKept = (Count + Lanes - 1) / Lanes;

  static __device__ __forceinline__ int lane() { return int(threadIdx.x) % kWarp; }

  // Lanes with the bit of `Mask` keep the upper half of the list and give away the lower one.
  template <int N, int Mask>
  __device__ __forceinline__ void halve(const double (&values)[N]) {
    if constexpr (Mask == 0) {
      static_assert(N == kKept, "ceil(ceil(n / 2) / 2) ... = ceil(n / Lanes)");
#pragma unroll
      for (int k = 0; k < N; ++k) kept_[k] += values[k];
    } else {
      constexpr int kHalf = (N + 1) / 2;
      const bool upper = (lane() & Mask) != 0;
      double half[kHalf];
#pragma unroll
      for (int k = 0; k < kHalf; ++k) {
        const double low = values[k], high = kHalf + k < N ? values[kHalf + k < N ? kHalf + k : 0] : 0.0;
        half[k] = (upper ? high : low) + __shfl_xor_sync(kAllLanes, upper ? low : high, Mask);
      }
      halve<kHalf, Mask / 2>(half);
    }
  }

  double kept_[kKept] = {};
};

// The sums of some pairs' partials, in all lanes of the warp that calls it; null: no such pair. The loads of all of them are in
// flight together, and each sum is added up in the same order as alone.
template <int Pairs>
__device__ __forceinline__ void sum_partials(const double* const (&partial)[Pairs] /* [count] each */, int count,
                                             double (&sums)[Pairs]) {
#pragma unroll
  for (int p = 0; p < Pairs; ++p) sums[p] = 0.0;
#pragma unroll 4
  for (int k = int(threadIdx.x) % kWarp; k < count; k += kWarp)
#pragma unroll
    for (int p = 0; p < Pairs; ++p)
      if (partial[p]) sums[p] += partial[p][k];
#pragma unroll
  for (int p = 0; p < Pairs; ++p)
#pragma unroll
    for (int mask = kWarp / 2; mask > 0; mask /= 2) sums[p] += __shfl_xor_sync(kAllLanes, sums[p], mask);
}

__device__ __forceinline__ double sum_partials(const double* partial /* [count] */, int count) {
  const double* const one[] = {partial};
  double sum[1];
  sum_partials(one, count, sum);
  return sum[0];
}

}  // namespace gradsurgery
