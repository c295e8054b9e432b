// Vectors that a block has read once and will need again: kept in shared memory, as far as there is room.
//
// A thread that takes a chunk's vectors in steps, `vectors_at_once` of 16 bytes a row at a time, finds them again in the same
// steps: every thread reads back what it wrote itself, so that no barrier is needed. A slot holds one vector of each row for each
// thread.
#pragma once

#include "cuda_elements.h"
#include "cuda_table.h"

namespace gradsurgery {

constexpr int kVectorThreads = 256;  // of the blocks that take a chunk in steps

// Vectors of each of `rows` rows that a thread loads before it uses the first: about eight loads of 16 bytes are in flight.
GS_HOST_DEVICE constexpr int vectors_at_once(int rows) { return rows <= 1 ? 8 : rows <= 2 ? 4 : rows <= 4 ? 2 : 1; }

GS_HOST_DEVICE constexpr int64_t slot_bytes(int tasks) { return int64_t(tasks) * kVectorThreads * 16; }

// Slots of a chunk with this many vectors a row.
GS_HOST_DEVICE constexpr int chunk_slots(int vectors) { return (vectors + kVectorThreads - 1) / kVectorThreads; }

// For kernels that read once: the same calls, and no code.
struct NothingKept {
  template <int Unroll>
  __device__ __forceinline__ void start(const PieceEntry&, int) const {}
  template <int Unroll>
  __device__ __forceinline__ void rewind(const PieceEntry&, int) const {}
  template <class Data>
  __device__ __forceinline__ void store(int, int, const Data&) const {}
  template <class Data>
  __device__ __forceinline__ bool load(int, Data&) const {
    return false;
  }
};

// The first sweep starts the block's chunks one after another, the second rewinds through them. What was read first is kept: what
// was read last is what the L2 cache still holds. Little is remembered, as the first sweep has no register to spare.
class KeptVectors {
 public:
  __device__ __forceinline__ KeptVectors(char* memory /* [slots, T, threads], 16 bytes each */, int slots, int tasks)
      : memory_(memory), slots_(slots), tasks_(tasks) {}

  // A chunk with this many vectors a row, which is taken Unroll * threads of them in a step.
  template <int Unroll>
  __device__ __forceinline__ void start(const PieceEntry& entry, int vectors) {
    set_limit<Unroll>(entry, vectors);
    at_ += own_slots(entry, vectors);
  }
  template <int Unroll>
  __device__ __forceinline__ void rewind(const PieceEntry& entry, int vectors) {
    at_ -= own_slots(entry, vectors);
    set_limit<Unroll>(entry, vectors);
  }

  // The step from vector `first` on: vectors first + thread, first + threads + thread, ... of each row.
  template <int Unroll, int Rows>
  __device__ __forceinline__ void store(int first, int vectors, const Raw<16> (&data)[Unroll][Rows]) const {
    if (first >= limit_) return;
#pragma unroll
    for (int u = 0; u < Unroll; ++u)
#pragma unroll
      for (int r = 0; r < Rows; ++r)
        if (inside(first, u, r)) *place(at_ - chunk_slots(vectors), first, u, r) = data[u][r];
  }

  // All threads get the same answer.
  template <int Unroll, int Rows>
  __device__ __forceinline__ bool load(int first, Raw<16> (&data)[Unroll][Rows]) const {
    if (first >= limit_) return false;
#pragma unroll
    for (int u = 0; u < Unroll; ++u)
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
        data[u][r] = {};
        if (inside(first, u, r)) data[u][r] = *place(at_, first, u, r);
      }
    return true;
  }

 private:
  // Otherwise the second sweep splits the piece's chunks in another way than the first.
  static __device__ bool aligned(const PieceEntry& entry) { return entry.head == entry.out_head; }
  static __device__ int own_slots(const PieceEntry& entry, int vectors) { return aligned(entry) ? chunk_slots(vectors) : 0; }

  template <int Unroll>
  __device__ __forceinline__ void set_limit(const PieceEntry& entry, int vectors) {
    const int room = slots_ - at_;
    limit_ = !aligned(entry) ? 0 : chunk_slots(vectors) <= room ? vectors : max(room, 0) / Unroll * (Unroll * kVectorThreads);
  }

  __device__ __forceinline__ bool inside(int first, int u, int r) const {
    return (u == 0 || first + u * kVectorThreads < limit_) && r < tasks_;
  }
  __device__ __forceinline__ Raw<16>* place(int chunk, int first, int u, int r) const {
    const int slot = chunk + first / kVectorThreads + u;
    return reinterpret_cast<Raw<16>*>(memory_) + ((slot * tasks_ + r) * kVectorThreads + int(threadIdx.x));
  }

  char* memory_;
  int slots_, tasks_;
  int at_ = 0;     // the first slot behind the chunk that was started, or of the one that was rewound
  int limit_ = 0;  // how many of its vectors are kept: all of them, or those of the first steps
};

}  // namespace gradsurgery
