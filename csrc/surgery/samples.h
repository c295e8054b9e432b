// Surgery of its own for every sample of a batch: gradients [B, ...], and a K, weights and a combination for each of the B. The
// rows' coordinates come sample by sample (Coordinates::samples_first); a sample's are equally many of every piece.
#pragma once

#include "../combine/combine.h"
#include "../gram/gram.h"
#include "../weights/weights.h"

namespace gradsurgery {

// In parallel over the samples. K_b has the bits of `gram_cpu` on the gradients of sample b alone.
void gram_samples_cpu(const Rows& rows, int64_t samples, const ParallelFor& parallel, double* gram /* [B, T, T] */);
void combine_samples_cpu(const Rows& rows, int64_t samples, const double* w /* [B, T] */, bool accumulate,
                         const ParallelFor& parallel);

// The three in turn for one sample after the other, while its gradients lie in the cache. Samples draw as groups do (see
// pcgrad_weights); one whose K is not finite gets NaN, and does not touch the others.
void pcgrad_samples_cpu(const Rows& rows, int64_t samples, const PcgradOptions& options, const int64_t* order, int64_t* key,
                        bool accumulate, const ParallelFor& parallel, double* gram /* [B, T, T] */, double* w /* [B, T] */);

}  // namespace gradsurgery
