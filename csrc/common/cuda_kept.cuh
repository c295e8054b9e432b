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
  __device__ __forceinline__ void start(const PieceEntry&, int) const {}
  __device__ __forceinline__ void finish() const {}
  __device__ __forceinline__ void rewind(const PieceEntry&, int) const {}
  template <class Data>
  __device__ __forceinline__ void store(int, const Data&) const {}
  template <class Data>
  __device__ __forceinline__ bool load(int, Data&) const {
    return false;
  }
};

// The first sweep starts and finishes the block's chunks one after another, the second rewinds through them. What was read first
// is kept: what was read last is what the L2 cache still holds.
class KeptVectors {
 public:
  __device__ __forceinline__ KeptVectors(char* memory /* [slots, T, threads], 16 bytes each */, int slots, int tasks)
      : memory_(memory + int(threadIdx.x) * 16), slots_(slots), tasks_(tasks) {}

  __device__ __forceinline__ void start(const PieceEntry& entry, int vectors) { vectors_ = aligned(entry) ? vectors : 0; }
  __device__ __forceinline__ void finish() { at_ += chunk_slots(vectors_); }
  __device__ __forceinline__ void rewind(const PieceEntry& entry, int vectors) {
    start(entry, vectors);
    at_ -= chunk_slots(vectors_);
  }

  // The vectors first, first + threads, ... of each row, where the whole step fits.
  template <int Unroll, int Rows>
  __device__ __forceinline__ void store(int first, const Raw<16> (&data)[Unroll][Rows]) const {
    if (!holds<Unroll>(first)) return;
#pragma unroll
    for (int u = 0; u < Unroll; ++u)
#pragma unroll
      for (int r = 0; r < Rows; ++r)
        if (inside(first, u, r)) *place(first, u, r) = data[u][r];
  }

  template <int Unroll, int Rows>
  __device__ __forceinline__ bool load(int first, Raw<16> (&data)[Unroll][Rows]) const {
    if (!holds<Unroll>(first)) return false;
#pragma unroll
    for (int u = 0; u < Unroll; ++u)
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
        data[u][r] = {};
        if (inside(first, u, r)) data[u][r] = *place(first, u, r);
      }
    return true;
  }

 private:
  // Otherwise the second sweep splits the piece's chunks in another way than the first.
  static __device__ bool aligned(const PieceEntry& entry) { return entry.head == entry.out_head; }

  template <int Unroll>
  __device__ __forceinline__ bool holds(int first) const {
    return first < vectors_ && at_ + min(first / kVectorThreads + Unroll, chunk_slots(vectors_)) <= slots_;
  }
  __device__ __forceinline__ bool inside(int first, int u, int r) const {
    return first + u * kVectorThreads < vectors_ && r < tasks_;
  }
  __device__ __forceinline__ Raw<16>* place(int first, int u, int r) const {
    const int slot = at_ + first / kVectorThreads + u;
    return reinterpret_cast<Raw<16>*>(memory_ + (slot * tasks_ + r) * (kVectorThreads * 16));
  }

  char* memory_;
  int slots_, tasks_;
  int vectors_ = 0;  // of the chunk, as far as they may be kept
  int at_ = 0;       // the chunk's first slot
};

}  // namespace gradsurgery
