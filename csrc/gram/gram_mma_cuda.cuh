// The Gram kernel for more than sixteen tasks whose gradients are all of 16 bits, on tensor cores: products exact in float32,
// runs of at most 256 float32 additions, everything after that in float64 and in a fixed order.
//
// What holds a row of A and what holds a column of B is the same for G G^T: a lane loads 16 bytes of each of four rows, and these
// words are both. A warp needs all 32 rows of a panel at its coordinates and forms all products among them, so every byte is
// read from device memory once for T <= 32, and nothing goes through shared memory.
//
// Expected of an H200 (4.8 TB/s, 132 multiprocessors, 67 TF of float32 FMA, several hundred of 16-bit mma.sync), a coordinate:
//   T = 32: 64 bytes read, six 16 x 8 tiles of products = 1536 flop: 24 flop a byte, or 115 TF at full bandwidth.
//   T = 17: 34 bytes, the same products: 45 flop a byte, or 217 TF. Memory is the limit throughout.
//   By FMA (gram_tiled) 8 x 8 tiles take 1280 flop at T = 32 and 768 at T = 17: 96 and 108 TF at full bandwidth, more than there
//   is; and 768 bytes of shared memory at T = 32, where 6.2 a byte from memory (128 a clock) allow 400. Hence this kernel.
#pragma once

#include "../common/cuda_mma.h"
#include "gram_cuda.cuh"

namespace gradsurgery {

constexpr int kMmaWarps = kMmaThreads / kWarp;
constexpr int kMmaTiles = 6;   // 16 x 8: rows 0..15 meet all 32, rows 16..31 the last 16
constexpr int kMmaWidth = 8;   // coordinates that a lane loads of a row
constexpr int kMmaStep = 32;   // coordinates of a warp's step: four lanes side by side, two products of 16 coordinates each
constexpr int kMmaUnroll = 2;  // steps: eight loads of 16 bytes in flight
constexpr int kMmaRunSteps = 8;
static_assert(kMmaStep * kMmaRunSteps <= 256, "runs of at most 256 float32 additions");
static_assert(kMmaRunSteps % kMmaUnroll == 0, "runs are whole numbers of turns");

__host__ __device__ constexpr int mma_rows(int tile) { return tile < 4 ? 0 : 1; }               // block of 16 rows
__host__ __device__ constexpr int mma_columns(int tile) { return tile < 4 ? tile : tile - 2; }  // block of eight

// rows: eight coordinates of the lane's row in each of the four blocks of eight. Which of the 16 coordinates of a product comes
// first is the same for A and B, and otherwise free: a lane's words are two products' worth.
template <class Element>
__device__ __forceinline__ void add_mma_step(const Raw<16> (&rows)[4], float (&run)[kMmaTiles][4]) {
#pragma unroll
  for (int word = 0; word < 4; word += 2)
#pragma unroll
    for (int tile = 0; tile < kMmaTiles; ++tile) {
      const Raw<16>&low = rows[2 * mma_rows(tile)], &high = rows[2 * mma_rows(tile) + 1], &column = rows[mma_columns(tile)];
      const uint32_t a[4] = {low.at[word], high.at[word], low.at[word + 1], high.at[word + 1]};
      const uint32_t b[2] = {column.at[word], column.at[word + 1]};
      multiply_add_16x8x16<Element>(run[tile], a, b);
    }
}

// `load(step, rows)` fills a lane's rows, with zeros beyond the last step.
template <class Element, int Unroll, class Load>
__device__ __forceinline__ void add_mma_steps(int steps, Load load, double (&sums)[kMmaTiles][4]) {
#pragma unroll 1
  for (int first = int(threadIdx.x) / kWarp; first < steps; first += kMmaRunSteps * kMmaWarps) {
    float run[kMmaTiles][4] = {};
    const int last = min(steps, first + kMmaRunSteps * kMmaWarps);
#pragma unroll 1
    for (int step = first; step < last; step += Unroll * kMmaWarps) {
      Raw<16> rows[Unroll][4];
#pragma unroll
      for (int u = 0; u < Unroll; ++u) load(step + u * kMmaWarps, rows[u]);
#pragma unroll
      for (int u = 0; u < Unroll; ++u) add_mma_step<Element>(rows[u], run);
    }
#pragma unroll
    for (int tile = 0; tile < kMmaTiles; ++tile)
#pragma unroll
      for (int s = 0; s < 4; ++s) sums[tile][s] += double(run[tile][s]);
  }
}

template <class Element>
__device__ __forceinline__ void add_chunk_by_mma(const Table& table, const Chunk& chunk, const Panel& panel,
                                                 double (&sums)[kMmaTiles][4]) {
  constexpr int kBytes = int(sizeof(Element));
  static_assert(kMmaWidth == kVector<Element>, "16 bytes");
  const Split split(piece_entries(table)[chunk.piece].head, chunk.length, kMmaWidth);
  const int lane = int(threadIdx.x) % kWarp, across = lane % 4;
  const char* from[4];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    from[r] = panel_row(table, chunk.piece, panel, r * kTile + lane / 4);
    if (from[r]) from[r] += chunk.start * kBytes;
  }
  add_mma_steps<Element, kMmaUnroll>((split.vectors + 3) / 4,
                                     [&](int step, Raw<16>(&rows)[4]) {
                                       const int v = step * 4 + across;
#pragma unroll
                                       for (int r = 0; r < 4; ++r) {
                                         rows[r] = Raw<16>{};
                                         if (from[r] && v < split.vectors)
                                           rows[r] = load_raw<16>(from[r] + split.vector_at(v, kMmaWidth) * kBytes);
                                       }
                                     },
                                     sums);
  add_mma_steps<Element, 1>((split.edges + kMmaStep - 1) / kMmaStep,
                            [&](int step, Raw<16>(&rows)[4]) {
                              const int first = (step * 4 + across) * kMmaWidth;
#pragma unroll
                              for (int r = 0; r < 4; ++r) {
                                rows[r] = Raw<16>{};
#pragma unroll
                                for (int k = 0; k < kMmaWidth; ++k)
                                  if (from[r] && first + k < split.edges)
                                    rows[r].at[k / 2] |=
                                        uint32_t(load_raw<2>(from[r] + split.edge_at(first + k, kMmaWidth) * kBytes).at[0])
                                        << k % 2 * 16;
                              }
                            },
                            sums);
}

// Three blocks a multiprocessor have 48 KB in flight, and 168 registers a thread.
static __global__ void __launch_bounds__(kMmaThreads, 3)
    gram_mma(const __grid_constant__ Table table, int panels, double* partial /* [pairs, gridDim.x / panels] */) {
  const int block = int(blockIdx.x) / panels, blocks = int(gridDim.x) / panels;
  const Panel panel(table.tasks, int(blockIdx.x) % panels);
  double sums[kMmaTiles][4] = {};
  for (int turn = block;; turn += blocks) {
    const int c = chunk_of_turn(table, block, blocks, turn);
    if (c == table.chunks) break;
    const Chunk chunk = find_chunk(table, c);
    if (piece_entries(table)[chunk.piece].scalar == Scalar::bf16)
      add_chunk_by_mma<BFloat16>(table, chunk, panel, sums);
    else
      add_chunk_by_mma<Half>(table, chunk, panel, sums);
  }
  constexpr int kEntries = kMmaTiles * 4 * kWarp;
  GS_SHARED(double, total, kEntries);
  const int warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  for (int w = 0; w < kMmaWarps; ++w) {  // one after another: the order is fixed, and one warp's sums are room enough
    if (warp == w) {
#pragma unroll
      for (int k = 0; k < kMmaTiles * 4; ++k) {
        const double before = w == 0 ? 0.0 : total[k * kWarp + lane];
        total[k * kWarp + lane] = before + sums[k / 4][k % 4];
      }
    }
    GS_BLOCK_BARRIER(gram_mma_sums);
  }
  for (int e = int(threadIdx.x); e < kEntries; e += kMmaThreads) {
    const int tile = e / (4 * kWarp), s = e / kWarp % 4, l = e % kWarp;
    const int row = mma_rows(tile) * 16 + l / 4 + s / 2 * 8, column = mma_columns(tile) * kTile + l % 4 * 2 + s % 2;
    // Panels beside the diagonal have what others have, too: the products of a block of 16 rows with itself.
    if (!panel.diagonal && (row >= kHalfPanel || column < kHalfPanel)) continue;
    const int i = panel.task(row), j = panel.task(column);
    if (row > column || column >= panel.row_blocks * kTile || j >= table.tasks) continue;
    partial[pair_index(i, j, table.tasks) * blocks + block] = total[e];
  }
}

}  // namespace gradsurgery
