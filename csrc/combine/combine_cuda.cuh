// The combine kernel: a weighted sum of the rows, 16 bytes of each at a time.
#pragma once

#include "../common/cuda_elements.h"
#include "../common/cuda_kept.cuh"
#include "../common/cuda_table.h"
#include "combine_cuda.h"

namespace gradsurgery {

// Rounds Width sums to the output's type and writes them at coordinate k on; 16 bytes at a time where there are as many.
template <class Run, int Width>
__device__ __forceinline__ void write_sums(Scalar out_scalar, char* out, int64_t k, bool accumulate, const Run (&sums)[Width]) {
  with_element<Run>(out_scalar, [&](auto tag) {
    using Out = typename decltype(tag)::type;
    constexpr int kPart = Width < kVector<Out> ? Width : kVector<Out>;
#pragma unroll
    for (int part = 0; part < Width; part += kPart) {
      char* const to = out + (k + part) * int64_t(sizeof(Out));
      Raw<kPart* int(sizeof(Out))> old{};  // zeros: adding them changes nothing but the sign of a zero
      if (accumulate) old = load_raw<kPart* int(sizeof(Out))>(to);
      Pack<Out, kPart> rounded;
#pragma unroll
      for (int e = 0; e < kPart; ++e) rounded.at[e] = convert<Out>(sums[part + e] + convert<Run>(unpack<Out, kPart>(old).at[e]));
      store_global(to, rounded);
    }
  });
}

// Some of the rows of one chunk, with their weights.
template <int Count, class Run>
struct WeightedRows {
  const char* row[Count];  // null: absent
  Run weight[Count];

  __device__ __forceinline__ WeightedRows(const Table& table, const Chunk& chunk, int bytes, const double* weights /* [T] */,
                                          int first) {
#pragma unroll
    for (int r = 0; r < Count; ++r) {
      row[r] = first + r < table.tasks ? row_pointer(table, chunk.piece, first + r) : nullptr;
      weight[r] = Run(0);  // an absent row adds nothing, even when its weight is NaN
      if (row[r]) {
        row[r] += chunk.start * bytes;
        weight[r] = convert<Run>(weights[first + r]);
      }
    }
  }
};

// `count` groups of Width coordinates, group v at position(v) of the chunk, the last of them first; Rows tasks at once, and More
// than these when set. A thread reads all rows at its coordinates before it writes there, so that the output may be a row;
// neither is __restrict__. weights() finds those of the chunk's group: kept, they would take registers from the inner loops.
template <class Element, class Run, int Width, int Rows, bool More, class Weights, class Position, class Kept>
__device__ __forceinline__ void combine_groups(const Table& table, const Chunk& chunk, Weights weights, bool accumulate,
                                               int count, Position position, const Kept& kept) {
  if (count == 0) return;
  constexpr int kBytes = int(sizeof(Element));
  constexpr int kUnroll = vectors_at_once(Rows), kStep = kUnroll * kCombineThreads;
  const PieceEntry& entry = piece_entries(table)[chunk.piece];
  const Scalar out_scalar = entry.out_scalar;
  char* const out = output_pointer(table, chunk.piece);
  const WeightedRows<Rows, Run> first_rows(table, chunk, kBytes, weights(), 0);
  for (int first = (count - 1) / kStep * kStep; first >= 0; first -= kStep) {
    Run sums[kUnroll][Width] = {};
    const auto add = [&](const WeightedRows<Rows, Run>& rows, const auto& maybe_kept) {
      Raw<Width * kBytes> data[kUnroll][Rows];
      if (!maybe_kept.load(first, data)) {
#pragma unroll
        for (int u = 0; u < kUnroll; ++u)
#pragma unroll
          for (int r = 0; r < Rows; ++r) {
            const int v = first + u * kCombineThreads + int(threadIdx.x);
            data[u][r] = {};
            if (rows.row[r] && v < count) data[u][r] = load_raw<Width * kBytes>(rows.row[r] + position(v) * kBytes);
          }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u)
#pragma unroll
        for (int r = 0; r < Rows; ++r)
#pragma unroll
          for (int k = 0; k < Width; ++k) sums[u][k] += rows.weight[r] * convert<Run>(unpack<Element, Width>(data[u][r]).at[k]);
    };
    add(first_rows, kept);
    if constexpr (More)
      for (int task = Rows; task < table.tasks; task += Rows)
        add(WeightedRows<Rows, Run>(table, chunk, kBytes, weights(), task), NothingKept{});
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int v = first + u * kCombineThreads + int(threadIdx.x);
      if (v < count) write_sums<Run, Width>(out_scalar, out, chunk.start + position(v), accumulate, sums[u]);
    }
  }
}

// One chunk, by all threads of a block.
template <int Rows, bool More, class Run, class Weights, class Kept>
__device__ __forceinline__ void combine_chunk(const Table& table, const Chunk& chunk, Weights weights, bool accumulate,
                                              Kept& kept) {
  const PieceEntry& entry = piece_entries(table)[chunk.piece];
  with_element<Run>(entry.scalar, [&](auto tag) {
    using Element = typename decltype(tag)::type;
    constexpr int kWidth = kVector<Element>;
    const Split split(entry.out_head, chunk.length, kWidth);
    kept.template rewind<vectors_at_once(Rows)>(entry, split.vectors);
    combine_groups<Element, Run, kWidth, Rows, More>(
        table, chunk, weights, accumulate, split.vectors, [&](int v) { return split.vector_at(v, kWidth); }, kept);
    combine_groups<Element, Run, 1, Rows, More>(
        table, chunk, weights, accumulate, split.edges, [&](int e) { return split.edge_at(e, kWidth); }, NothingKept{});
  });
}

template <int Rows, bool More, class Run>
__global__ void __launch_bounds__(kCombineThreads, 2)
    combine_chunks(const __grid_constant__ Table table, const double* weights /* [G, T] */, bool accumulate) {
  // Backwards: the end of what the Gram pass read last is still in the L2 cache.
  const Chunk chunk = find_chunk(table, table.chunks - 1 - int(blockIdx.x));
  const auto of_group = [&] { return weights + int64_t(find_group(table, table.chunks - 1 - int(blockIdx.x))) * table.tasks; };
  NothingKept nothing;
  combine_chunk<Rows, More, Run>(table, chunk, of_group, accumulate, nothing);
}

}  // namespace gradsurgery
