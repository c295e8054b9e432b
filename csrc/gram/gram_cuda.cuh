// The Gram kernels. Products and runs of at most 256 additions in float32 (float64 for float64 gradients), everything after
// that in float64 and in a fixed order, no atomics. Each gradient is read from device memory once for T <= 32.
#pragma once

#include "../common/cuda_elements.h"
#include "../common/cuda_kept.cuh"
#include "../common/cuda_reduce.cuh"
#include "../common/cuda_table.h"
#include "../common/cuda_tile.cuh"
#include "gram_cuda.h"

namespace gradsurgery {

// The chunk of a block's turn, where turns are numbered block, block + blocks, block + 2 * blocks, ...: every n-th of the chunks
// of its group; table.chunks: none is left. Found anew for each chunk, which costs little beside it, as in the kernels' inner
// loops there is no register to spare.
__device__ __forceinline__ int chunk_of_turn(const Table& table, int block, int blocks, int turn) {
  if (table.groups == 1) return turn < table.chunks ? turn : table.chunks;
  const int group = last_at_most(block, table.groups, [&](int g) { return group_first_block(table, g, blocks); });
  const int before = group_first_block(table, group, blocks), step = group_first_block(table, group + 1, blocks) - before;
  const int64_t* const chunks = group_chunks(table) + group;
  const int64_t c = chunks[0] + (block - before) + int64_t(turn / blocks) * step;
  return c < chunks[1] ? int(c) : table.chunks;
}

// --- up to eight tasks: every thread accumulates all pairs ---

constexpr int kGramThreads = kVectorThreads;
// A thread adds at most this many coordinates of a chunk to one float32 accumulator: whole vectors, plus an edge.
static_assert(kMaxChunk / kGramThreads + 8 <= 256, "runs of at most 256 float32 additions");

template <int T, class Run>
__device__ __forceinline__ void add_products(const Run (&x)[T], Run (&sums)[T * (T + 1) / 2]) {
  int pair = 0;
#pragma unroll
  for (int i = 0; i < T; ++i)
#pragma unroll
    for (int j = i; j < T; ++j) sums[pair++] += x[i] * x[j];
}

template <class Element, class Run, int T, class Kept>
__device__ __forceinline__ void add_chunk(const Table& table, const Chunk& chunk, Kept& kept, Run (&run)[T * (T + 1) / 2]) {
  constexpr int kWidth = kVector<Element>;
  constexpr int kUnroll = vectors_at_once(T);
  const PieceEntry& entry = piece_entries(table)[chunk.piece];
  const Split split(entry.head, chunk.length, kWidth);
  kept.template start<kUnroll>(entry, split.vectors);
  const char* rows[T];
#pragma unroll
  for (int t = 0; t < T; ++t) {
    rows[t] = t < table.tasks ? row_pointer(table, chunk.piece, t) : nullptr;
    if (rows[t]) rows[t] += chunk.start * int64_t(sizeof(Element));
  }
  const int thread = int(threadIdx.x);
  for (int first = 0; first < split.vectors; first += kUnroll * kGramThreads) {
    Raw<16> data[kUnroll][T];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int v = first + u * kGramThreads + thread;
#pragma unroll
      for (int t = 0; t < T; ++t) {
        data[u][t] = Raw<16>{};
        if (rows[t] && v < split.vectors) data[u][t] = load_raw<16>(rows[t] + split.vector_at(v, kWidth) * int(sizeof(Element)));
      }
    }
    kept.store(first, split.vectors, data);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        Run x[T];
#pragma unroll
        for (int t = 0; t < T; ++t) x[t] = convert<Run>(unpack<Element, kWidth>(data[u][t]).at[k]);
        add_products<T>(x, run);
      }
  }
#pragma unroll 1
  for (int e = thread; e < split.edges; e += kGramThreads) {
    Run x[T];
#pragma unroll
    for (int t = 0; t < T; ++t) {
      x[t] = Run(0);
      if (rows[t]) x[t] = convert<Run>(load_global<Element>(rows[t] + split.edge_at(e, kWidth) * int(sizeof(Element))).at[0]);
    }
    add_products<T>(x, run);
  }
}

// One of `blocks` shares of the work, by all threads of a block: its sums for up to T tasks.
template <int T, class Run, class Kept>
__device__ __forceinline__ void gram_share(const Table& table, int block, int blocks, Kept& kept,
                                           double* partial /* [pairs, blocks] */) {
  constexpr int kPairs = T * (T + 1) / 2, kWarps = kGramThreads / kWarp;
  WarpSums<kPairs> sums;
  for (int turn = block;; turn += blocks) {
    const int c = chunk_of_turn(table, block, blocks, turn);
    if (c == table.chunks) break;
    const Chunk chunk = find_chunk(table, c);
    Run run[kPairs] = {};
    with_element<Run>(piece_entries(table)[chunk.piece].scalar,
                      [&](auto tag) { add_chunk<typename decltype(tag)::type, Run, T>(table, chunk, kept, run); });
    sums.add(run);  // here, where the compiler can see that all threads are together
  }
  GS_SHARED(double, warp_sums, kWarps* kPairs);
  sums.store(warp_sums + int(threadIdx.x) / kWarp * kPairs);
  GS_BLOCK_BARRIER(gram_small_sums);
  if (int(threadIdx.x) < kPairs) {
    int i, j;
    pair_at(int(threadIdx.x), T, i, j);
    if (j >= table.tasks) return;
    double sum = 0.0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += warp_sums[w * kPairs + int(threadIdx.x)];
    partial[pair_index(i, j, table.tasks) * blocks + block] = sum;
  }
}

// Two or three blocks a multiprocessor hide the latency of memory; with float64 accumulators one has to do for the largest T.
template <int T, class Run>
constexpr int kSmallBlocks = sizeof(Run) == 4 ? (T <= 5 ? 3 : 2) : (T <= 4 ? 2 : 1);

template <int T, class Run>
__global__ void __launch_bounds__(kGramThreads, kSmallBlocks<T, Run>)
    gram_small(const __grid_constant__ Table table, double* partial /* [pairs, gridDim.x] */) {
  NothingKept nothing;
  gram_share<T, Run>(table, int(blockIdx.x), int(gridDim.x), nothing, partial);
}

// --- more tasks: rows staged in shared memory, 8 x 8 products a warp ---
//
// A slab of 512 bytes of up to 32 rows (as Run) is staged once and serves all pairs among them. With more than 32 tasks,
// a block takes two 16-row blocks of the tasks (a panel) and the pairs between them. Every warp owns one 8 x 8 tile of
// pairs for the whole kernel; where there are warps enough, several share a tile and each takes part of each slab. The 32
// sums of a lane leave room for the prefetch.
//
// Expected of an H200 (4.8 TB/s, 132 multiprocessors at 128 bytes of shared memory and four instructions a clock, 67 TF of FMA):
//   T = 16, float32: a coordinate is 64 bytes from memory, 256 of shared memory (64 written, 192 read; 6.2 times the bytes from
//   memory are to be had) and 384 flop, 29 TF at full bandwidth: memory is the limit.
//   T = 32, float32: 128 bytes, 768 of shared memory (6.0 times) and 1280 flop, 48 TF: memory, shared memory and the issue of
//   instructions come to within a few percent of each other, so some of the bandwidth will be missed.
//   T = 16, bfloat16: 32 bytes, the same 256 of shared memory (8 times): shared memory is the limit, at three quarters of the
//   bandwidth. Above 16 tasks gram_mma takes these.

constexpr int kHalfPanel = 16;
constexpr int kStagedRows = 2 * kHalfPanel;
constexpr int kRowBytes = 512;
constexpr int kSlabSteps = kRowBytes / (8 * kTileLanes);  // of 8 bytes a lane
constexpr int kSlots = 4;                                 // 16-byte vectors a thread prefetches
constexpr int kMaxTiledThreads = 320;

template <class Run>
constexpr int kSlab = kRowBytes / int(sizeof(Run));  // coordinates
static_assert(kMaxTiledChunk / kTileLanes <= 256, "runs of at most 256 float32 additions, one warp to a tile");

struct Panel {
  int first, second;  // tasks of staged row 0 and of staged row 16
  bool diagonal;      // the rows meet themselves; else the first 16 meet the others
  int row_blocks;     // of eight staged rows

  __device__ Panel(int tasks, int panel) {
    int i = 0, j = 1;
    if (tasks > kStagedRows) pair_at(panel, (tasks + kHalfPanel - 1) / kHalfPanel, i, j);
    first = i * kHalfPanel;
    second = j * kHalfPanel;
    diagonal = tasks <= kStagedRows || i == j;
    const int rows = tasks <= kStagedRows ? tasks
                     : diagonal           ? min(tasks - first, kHalfPanel)
                                          : kHalfPanel + min(tasks - second, kHalfPanel);
    row_blocks = (rows + kTile - 1) / kTile;
  }
  __device__ int task(int row) const { return row < kHalfPanel ? first + row : second + row - kHalfPanel; }
  __device__ int tiles() const { return diagonal ? row_blocks * (row_blocks + 1) / 2 : 2 * (row_blocks - 2); }
  __device__ void tile(int tile, int& a, int& b) const {
    if (diagonal) {
      int i, j;
      pair_at(tile, row_blocks, i, j);
      a = i;
      b = j;
    } else {
      a = tile % 2;
      b = 2 + tile / 2;
    }
  }
};

// The gradient of a staged row in a piece, or null.
__device__ __forceinline__ const char* panel_row(const Table& table, int piece, const Panel& panel, int staged) {
  const int task = panel.task(staged);
  return staged < panel.row_blocks * kTile && task < table.tasks ? row_pointer(table, piece, task) : nullptr;
}

// Moves a chunk, slab after slab, into shared memory. Slabs that lie in the chunk and are aligned go through registers, 16 bytes
// at a time, and may be loaded while the one before is worked on; others are copied element by element, with zeros outside.
template <class Element, class Run>
class Stager {
 public:
  __device__ __forceinline__ Stager(const Table& table, const Chunk& chunk, const Panel& panel)
      : table_(table), chunk_(chunk), panel_(panel) {
    const int head = piece_entries(table)[chunk.piece].head;
    aligned_ = head != kNoBorder;
    origin_ = head > 0 ? head - kWidth : 0;  // aligned, too
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      rows_[s] = slot(s) < slots() ? row(slot(s) / kAcross) : nullptr;
      if (rows_[s]) rows_[s] += (origin_ + slot(s) % kAcross * kWidth) * int(sizeof(Element));
    }
  }

  __device__ int slabs() const { return (chunk_.length - origin_ + kSlab<Run> - 1) / kSlab<Run>; }

  // Zeros, too, where nothing is loaded: registers that keep what was in them on some way are held through all loops of the
  // kernel, and by each type of gradients anew.
  __device__ __forceinline__ void load(int slab) {
    const bool through_registers = whole(slab);
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      data_[s] = Raw<16>{};
      if (through_registers && rows_[s]) data_[s] = load_raw<16>(rows_[s] + slab * kSlab<Run> * int(sizeof(Element)));
    }
  }

  __device__ __forceinline__ void store(int slab, char* to) const {
    if (!whole(slab)) {
      copy_elements(slab, reinterpret_cast<Run*>(to));
      return;
    }
    constexpr int kPart = kWidth < kVector<Run> ? kWidth : kVector<Run>;
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      if (slot(s) >= slots()) continue;
      const Pack<Element, kWidth> elements = unpack<Element, kWidth>(data_[s]);
      auto* const parts = reinterpret_cast<Pack<Run, kPart>*>(to) + slot(s) * (kWidth / kPart);
#pragma unroll
      for (int part = 0; part < kWidth / kPart; ++part) {
        Pack<Run, kPart> widened;
#pragma unroll
        for (int k = 0; k < kPart; ++k) widened.at[k] = convert<Run>(elements.at[part * kPart + k]);
        parts[part] = widened;
      }
    }
  }

 private:
  static constexpr int kWidth = kVector<Element>;
  static constexpr int kAcross = kSlab<Run> / kWidth;  // vectors of a row in a slab

  static __device__ int slot(int s) { return int(threadIdx.x) + s * int(blockDim.x); }
  __device__ int slots() const { return panel_.row_blocks * kTile * kAcross; }

  __device__ bool whole(int slab) const {
    const int start = origin_ + slab * kSlab<Run>;
    return aligned_ && start >= 0 && start + kSlab<Run> <= chunk_.length;
  }

  __device__ __forceinline__ const char* row(int staged) const {
    const char* const pointer = panel_row(table_, chunk_.piece, panel_, staged);
    return pointer ? pointer + chunk_.start * int64_t(sizeof(Element)) : nullptr;
  }

  __device__ __forceinline__ void copy_elements(int slab, Run* to) const {
#pragma unroll 1
    for (int e = int(threadIdx.x); e < panel_.row_blocks * kTile * kSlab<Run>; e += int(blockDim.x)) {
      const char* const from = row(e / kSlab<Run>);
      const int k = origin_ + slab * kSlab<Run> + e % kSlab<Run>;
      to[e] = from && k >= 0 && k < chunk_.length ? convert<Run>(load_global<Element>(from + k * int(sizeof(Element))).at[0])
                                                  : Run(0);
    }
  }

  const Table& table_;
  const Chunk& chunk_;
  const Panel& panel_;
  const char* rows_[kSlots];
  Raw<16> data_[kSlots];
  int origin_;
  bool aligned_;
};

// Adds the products of tile (a, b) at this half-warp's coordinates of a step.
template <class Run>
__device__ __forceinline__ void add_slab_tile(const char* slab, int a, int b, int step, Run (&run)[kLaneRows * kTile]) {
  const char* const at = slab + (step * kTileLanes + int(threadIdx.x) % kTileLanes) * 8;
  const char* const rows = at + (a * kTile + first_lane_row()) * kRowBytes;
  const char* const others = at + b * kTile * kRowBytes;
  using Step = Raw<8>;
  add_tile<Run, 8 / int(sizeof(Run))>([&](int i) { return *reinterpret_cast<const Step*>(rows + i * kRowBytes); },
                                      [&](int j) { return *reinterpret_cast<const Step*>(others + j * kRowBytes); }, run);
}

// At 168 registers two blocks of six warps (up to 24 tasks) fit a multiprocessor, one of ten.
template <class Run>
__global__ void __launch_bounds__(kMaxTiledThreads)
    gram_tiled(const __grid_constant__ Table table, int panels, double* partial /* [pairs, gridDim.x / panels] */) {
  constexpr int kSlabBytes = kStagedRows * kRowBytes, kEntries = kTile * kTile;
  using Line = Pack<float, 4>;  // 16-byte alignment
  GS_SHARED(Line, slabs, 2 * kSlabBytes / int(sizeof(Line)));
  GS_SHARED(double, warp_sums, kMaxTiledThreads / kWarp * kEntries);
  const int block = int(blockIdx.x) / panels, blocks = int(gridDim.x) / panels;
  const Panel panel(table.tasks, int(blockIdx.x) % panels);
  const int tiles = panel.tiles(), warp = int(threadIdx.x) / kWarp;
  const int sharers = min(int(blockDim.x) / kWarp / tiles, kSlabSteps);
  const int sharer = warp / tiles;  // beyond `sharers`: this warp only stages
  int a, b;
  panel.tile(warp % tiles, a, b);

  WarpSums<kEntries / 2, kTileLanes> sums;
  int parity = 0;
  for (int turn = block;; turn += blocks) {
    const int c = chunk_of_turn(table, block, blocks, turn);
    if (c == table.chunks) break;
    const Chunk chunk = find_chunk(table, c);
    Run run[kEntries / 2] = {};
    with_element<Run>(piece_entries(table)[chunk.piece].scalar, [&](auto tag) {
      Stager<typename decltype(tag)::type, Run> stager(table, chunk, panel);
      const int count = stager.slabs();
      stager.load(0);
      for (int s = 0; s < count; ++s) {
        // Two slabs take turns: when one is overwritten, all threads have passed the barrier after they last read it.
        char* const slab = reinterpret_cast<char*>(slabs) + parity * kSlabBytes;
        parity ^= 1;
        stager.store(s, slab);
        GS_BLOCK_BARRIER(gram_tiled_slab);
        if (s + 1 < count) stager.load(s + 1);
        if (sharer < sharers) {
#pragma unroll 1
          for (int step = sharer; step < kSlabSteps; step += sharers) add_slab_tile<Run>(slab, a, b, step, run);
        }
      }
    });
    sums.add(run);  // warps without a tile, too: the compiler must see that all threads are together
  }
  if (sharer < sharers) sums.store(warp_sums + warp * kEntries + int(threadIdx.x) % kWarp / kTileLanes * (kEntries / 2));
  GS_BLOCK_BARRIER(gram_tiled_sums);
  for (int e = int(threadIdx.x); e < tiles * kEntries; e += int(blockDim.x)) {
    panel.tile(e / kEntries, a, b);
    const int i = panel.task(a * kTile + e % kEntries / kTile), j = panel.task(b * kTile + e % kTile);
    if (i > j || j >= table.tasks) continue;
    double sum = 0.0;
    for (int s = 0; s < sharers; ++s) sum += warp_sums[s * tiles * kEntries + e];
    partial[pair_index(i, j, table.tasks) * blocks + block] = sum;
  }
}

// --- second stage ---

constexpr int kFinishThreads = 256;

static __global__ void __launch_bounds__(kFinishThreads)
    gram_finish(const __grid_constant__ Table table, int blocks, const double* partial /* [pairs, blocks] */,
                double* gram /* [G, T, T] */) {
  const int64_t tasks = table.tasks, pairs = pair_count(tasks);
  const int64_t warp = int64_t(blockIdx.x) * (kFinishThreads / kWarp) + threadIdx.x / kWarp;
  const int group = int(warp / pairs);
  if (group >= table.groups) return;
  const int64_t pair = warp % pairs;
  const int first = group_first_block(table, group, blocks);
  const double sum = sum_partials(partial + pair * blocks + first, group_first_block(table, group + 1, blocks) - first);
  int i, j;
  pair_at(pair, int(tasks), i, j);
  double* const square = gram + group * tasks * tasks;
  if (threadIdx.x % kWarp == 0) square[i * tasks + j] = square[j * tasks + i] = sum;
}

}  // namespace gradsurgery
