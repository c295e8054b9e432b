// One block a sample: it stages the sample's rows in shared memory, multiplies them there, solves, and combines them from there.
// Where not the whole of them fits, windows of the rows follow each other, and are read a second time, from the L2 cache, last
// first. Products and runs of at most 256 additions are float32 (float64 as soon as one tensor of the call is), all else of K is
// float64; which lane adds what depends on T, N and the types alone: neither on windows nor on alignment.
#pragma once

#include "../combine/combine_cuda.cuh"
#include "../common/cuda_elements.h"
#include "../common/cuda_reduce.cuh"
#include "../common/cuda_tile.cuh"
#include "../weights/pcgrad_cuda.cuh"
#include "samples_cuda.h"

namespace gradsurgery {

// A block's warps: one a tile, or eight with up to eight tasks.
template <bool Tiled>
constexpr int kSampleWarps = Tiled ? kMaxSampleTiles : 8;

// A sample's share of a piece.
struct SamplePiece {
  const PieceEntry& entry;
  int piece;
  int64_t start;  // of the sample in the piece's rows
  int words;      // of a row of it

  __device__ __forceinline__ SamplePiece(const Table& table, int piece)
      : entry(piece_entries(table)[piece]),
        piece(piece),
        start(int64_t(blockIdx.x) * entry.numel),
        words(int(sample_words(entry.numel, bytes(entry.scalar)))) {}
  static __device__ __forceinline__ int bytes(Scalar scalar) { return scalar == Scalar::f64 ? 8 : scalar == Scalar::f32 ? 4 : 2; }
};

// Some words of every row of a piece, in shared memory: [T, count] words, with zeros for absent rows and past a row's end.
struct SampleWindow {
  char* data;
  int first;  // word of the rows
  int count;

  // How many of its words lie in a row that ends after `numel` coordinates, `width` of which make a word.
  __device__ __forceinline__ int whole(int64_t numel, int width) const {
    const int64_t left = numel / width - first;
    return left < count ? (left > 0 ? int(left) : 0) : count;
  }
};

// Copies a piece's rows into a window: 16 bytes at a time, four loads in flight, where they are aligned, else by elements.
template <class Element>
__device__ __forceinline__ void stage_rows(const Table& table, const SamplePiece& piece, const SampleWindow& window) {
  constexpr int kWidth = kVector<Element>, kSlots = 4, kBytes = int(sizeof(Element));
  const int head = piece.entry.head, threads = int(blockDim.x);
  const bool aligned = head != kNoBorder && (piece.start - head) * kBytes % kSampleWord == 0;
  const int64_t first = int64_t(window.first) * kWidth, start = piece.start + first;
  const unsigned words = aligned ? unsigned(window.whole(piece.entry.numel, kWidth)) : 0;
  const unsigned all_words = unsigned(table.tasks) * words;
  for (unsigned slot = threadIdx.x; slot < all_words; slot += kSlots * threads) {
    Raw<kSampleWord> data[kSlots];
    int to[kSlots];
#pragma unroll
    for (int s = 0; s < kSlots; ++s) {
      const unsigned at = slot + s * threads, task = at / words, word = at - task * words;
      data[s] = Raw<kSampleWord>{};
      to[s] = -1;
      if (at < all_words) {
        to[s] = int((task * window.count + word) * kSampleWord);
        const char* const row = row_pointer(table, piece.piece, int(task));
        if (row) data[s] = load_raw<kSampleWord>(row + (start + word * kWidth) * kBytes);
      }
    }
#pragma unroll
    for (int s = 0; s < kSlots; ++s)
      if (to[s] >= 0) *reinterpret_cast<Raw<kSampleWord>*>(window.data + to[s]) = data[s];
  }
  const unsigned edges = (unsigned(window.count) - words) * kWidth;
#pragma unroll 4
  for (unsigned at = threadIdx.x; at < unsigned(table.tasks) * edges; at += threads) {
    const unsigned task = at / edges, k = words * kWidth + at - task * edges;
    const char* const row = row_pointer(table, piece.piece, int(task));
    Element x = Element(0.0f);
    if (row && first + k < piece.entry.numel) x = load_global<Element>(row + (start + k) * kBytes).at[0];
    reinterpret_cast<Element*>(window.data)[task * window.count * kWidth + k] = x;
  }
}

// --- K ---

// Bytes of a row that a lane takes at a time: two coordinates, or one of float64. Tiled, 8, or one coordinate where sums are
// float64: more of the rows, once converted, would not fit the registers that those leave.
template <class Run, bool Tiled>
GS_HOST_DEVICE constexpr int step_bytes(int element_bytes) {
  if (Tiled) return sizeof(Run) == 8 ? element_bytes : 8;
  return element_bytes == 2 ? 4 : 8;
}

template <bool Tiled>
constexpr int kSampleRounds = Tiled ? 64 : 128;  // of these to one float32 accumulator

// Lanes among which the coordinates of a warp's rows are dealt out.
template <bool Tiled>
constexpr int kSampleLanes = Tiled ? kTileLanes : kWarp;

// The pairs of one warp: those of R rows with themselves, or (Tiled) of R rows with R others.
template <int R, bool Tiled>
constexpr int kSamplePairs = Tiled ? R * R : R * (R + 1) / 2;

template <int R, bool Tiled, class Run>
class SampleSums {
 public:
  // From `from` on every `stride`-th step of the window up to `to`, of the rows from a and from b on.
  template <class Element>
  __device__ __forceinline__ void add(const SampleWindow& window, int tasks, int a, int b, int from, int to, int stride) {
    constexpr int kBytes = step_bytes<Run, Tiled>(int(sizeof(Element))), kWidth = kBytes / int(sizeof(Element));
    static_assert(sizeof(Run) == 8 || kWidth * kSampleRounds<Tiled> <= 256, "runs of at most 256 float32 additions");
    using Step = Raw<kBytes>;
    const int row_bytes = window.count * kSampleWord;
    const auto at = [&](int task, int step) {
      Step x{};
      if (task < tasks) x = *reinterpret_cast<const Step*>(window.data + task * row_bytes + step * kBytes);
      return x;
    };
#pragma unroll 1
    for (int step = from; step < to; step += stride) {
      if constexpr (Tiled) {
        static_assert(R == kTile && kTile == kSampleTile);
        add_tile<Element, kWidth>([&](int i) { return at(a + first_lane_row() + i, step); },
                                  [&](int j) { return at(b + j, step); }, run_);
      } else {
        Step y[R];
#pragma unroll
        for (int j = 0; j < R; ++j) y[j] = at(b + j, step);
#pragma unroll
        for (int i = 0; i < R; ++i)
#pragma unroll
          for (int k = 0; k < kWidth; ++k) {
            const Run value = convert<Run>(unpack<Element, kWidth>(y[i]).at[k]);
#pragma unroll
            for (int j = i; j < R; ++j)
              run_[i * R - i * (i - 1) / 2 + j - i] += value * convert<Run>(unpack<Element, kWidth>(y[j]).at[k]);
          }
      }
    }
  }

  // By all lanes of the warp.
  __device__ __forceinline__ void flush() {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      Run values[kPart];
#pragma unroll
      for (int k = 0; k < kPart; ++k) {
        values[k] = run_[part * kPart + k];
        run_[part * kPart + k] = Run(0);
      }
      sums_[part].add(values);
    }
  }

  __device__ __forceinline__ void store(double* sums /* [kSamplePairs] */) const {
    const int group = int(threadIdx.x) % kWarp / kLanes;
#pragma unroll
    for (int part = 0; part < kParts; ++part) sums_[part].store(sums + group * kPairs + part * kPart);
  }

 private:
  static constexpr int kLanes = kSampleLanes<Tiled>, kPairs = kSamplePairs<R, Tiled> / (kWarp / kLanes);  // of a lane
  // A warp sums up in parts to spare registers.
  static constexpr int kParts = kPairs <= 16 ? 1 : sizeof(Run) == 8 && !Tiled ? 4 : 2, kPart = kPairs / kParts;

  Run run_[kPairs] = {};
  WarpSums<kPart, kLanes> sums_[kParts];
};

// --- w ---

// PCGrad's weights of one sample, by all threads of the block; K is complete after the first barrier.
__device__ __forceinline__ void solve_sample(const SamplesCuda& call, int64_t sample, int tasks, char* memory,
                                             double* w /* [T] */) {
  const int square = tasks * tasks, thread = int(threadIdx.x), threads = int(blockDim.x), warps = threads / kWarp;
  double* const gram = reinterpret_cast<double*>(memory);                             // [T, T]
  double* const c = gram + square;                                                    // [T, T]
  double* const dots = c + square;                                                    // [warps, T]
  int32_t* const orders = reinterpret_cast<int32_t*>(dots + int64_t(warps) * tasks);  // [warps, T]
  const PcgradScan scan{call.options, call.order, call.key, tasks, uint32_t(sample), gram, c, dots, orders};
  bool finite, refuse;
  scan.run(finite, refuse);
  for (int j = thread; j < tasks; j += threads) call.w[sample * tasks + j] = w[j] = scan.weight(j, refuse);
  if (thread == 0 && call.broken) call.broken[sample] = !finite;
}

// --- sum_t w_t g_t ---

// `count` groups of Width coordinates of a window, from coordinate `from` of the window on.
template <class Element, class Run, int Width>
__device__ __forceinline__ void write_groups(const Table& table, const SamplePiece& piece, const SampleWindow& window,
                                             const double* w, bool accumulate, int from, int count) {
  constexpr int kBytes = int(sizeof(Element)), kWidth = kVector<Element>;
  for (int group = int(threadIdx.x); group < count; group += int(blockDim.x)) {
    const int k = from + group * Width;
    Run sums[Width] = {};
#pragma unroll 4
    for (int t = 0; t < table.tasks; ++t) {
      if (!row_pointer(table, piece.piece, t)) continue;  // an absent row adds nothing, even when its weight is NaN
      const auto x = *reinterpret_cast<const Raw<Width * kBytes>*>(window.data + t * window.count * kSampleWord + k * kBytes);
      const Run weight = convert<Run>(w[t]);
#pragma unroll
      for (int e = 0; e < Width; ++e) sums[e] += weight * convert<Run>(unpack<Element, Width>(x).at[e]);
    }
    write_sums<Run, Width>(piece.entry.out_scalar, output_pointer(table, piece.piece),
                           piece.start + int64_t(window.first) * kWidth + k, accumulate, sums);
  }
}

template <class Element, class Run>
__device__ __forceinline__ void write_window(const Table& table, const SamplePiece& piece, const SampleWindow& window,
                                             const double* w, bool accumulate) {
  constexpr int kWidth = kVector<Element>;
  const int out_bytes = SamplePiece::bytes(piece.entry.out_scalar), border = min(kWidth * out_bytes, 16);
  const bool aligned =
      ((reinterpret_cast<uintptr_t>(output_pointer(table, piece.piece)) + piece.start * out_bytes) & (border - 1)) == 0;
  const int words = aligned ? window.whole(piece.entry.numel, kWidth) : 0;
  const int64_t left = piece.entry.numel - int64_t(window.first) * kWidth;
  const int elements = left < int64_t(window.count) * kWidth ? int(left) : window.count * kWidth;
  write_groups<Element, Run, kWidth>(table, piece, window, w, accumulate, 0, words);
  write_groups<Element, Run, 1>(table, piece, window, w, accumulate, words * kWidth, elements - words * kWidth);
}

// --- all of it ---

// For up to R tasks, or Tiled for more than R = 8.
template <int R, bool Tiled, class Run>
__global__ void __launch_bounds__(kSampleWarps<Tiled>* kWarp, Tiled || sizeof(Run) == 8 ? 1 : 2)
    sample_surgery(const __grid_constant__ Table table, const __grid_constant__ SamplesCuda call) {
  constexpr int kPairs = kSamplePairs<R, Tiled>, kLanes = kSampleLanes<Tiled>, kRounds = kSampleRounds<Tiled>;
  GS_DYNAMIC_SHARED(shared);
  GS_SHARED(double, warp_sums, kSampleWarps<Tiled>* kPairs);
  const int tasks = table.tasks, threads = int(blockDim.x), warp = int(threadIdx.x) / kWarp;
  const bool whole = call.window == kWholeSample;
  double* const w = reinterpret_cast<double*>(shared);  // [T]
  char* const memory = shared + 8 * tasks;
  int place = int(sample_memory(tasks, threads / kWarp, call.solves()));  // of a piece's rows, behind the rest

  if (call.gram) {
    const int tiles = Tiled ? min(sample_tiles(tasks) - int(blockIdx.y) * kMaxSampleTiles, kMaxSampleTiles) : 1;
    const int slices = max(threads / kWarp / tiles, 1), slice = warp / tiles;  // from `slices` on: this warp only stages
    const int stride = slices * kLanes;
    int a = 0, b = 0;
    if (Tiled) pair_at(int(blockIdx.y) * kMaxSampleTiles + warp % tiles, (tasks + R - 1) / R, a, b);
    SampleSums<R, Tiled, Run> sums;
    for (int p = 0; p < table.pieces; ++p) {
      const SamplePiece piece(table, p);
      const int length = whole ? piece.words : call.window;
      int added = 0;  // steps of the run that is under way
      for (int first = 0; first < piece.words; first += length) {
        const SampleWindow window{shared + place, first, min(length, piece.words - first)};
        if (!whole) GS_BLOCK_BARRIER(sample_window_free);
        with_element<Run>(piece.entry.scalar, [&](auto tag) { stage_rows<typename decltype(tag)::type>(table, piece, window); });
        GS_BLOCK_BARRIER(sample_window_staged);
        const int end = window.count * (kSampleWord / step_bytes<Run, Tiled>(piece.bytes(piece.entry.scalar)));
        for (int at = 0; at < end;) {
          const int stop = min(end, at + stride * kRounds - added);
          const int own = slice * kLanes + int(threadIdx.x) % kLanes, past = added % stride;
          const int from = at + (own >= past ? own - past : own - past + stride);
          if (slice < slices)
            with_element<Run>(piece.entry.scalar, [&](auto tag) {
              sums.template add<typename decltype(tag)::type>(window, tasks, a * R, b * R, from, stop, stride);
            });
          added += stop - at;
          at = stop;
          if (added == stride * kRounds || (at == end && first + window.count == piece.words)) {
            sums.flush();  // here, where the compiler can see that all threads are together
            added = 0;
          }
        }
      }
      if (whole) place += tasks * piece.words * kSampleWord;
    }
    if (slice < slices) sums.store(warp_sums + warp * kPairs);
    GS_BLOCK_BARRIER(sample_sums);
    double* const gram = call.gram + int64_t(blockIdx.x) * tasks * tasks;
    double* const solved = call.solves() ? reinterpret_cast<double*>(memory) : nullptr;
    for (int e = int(threadIdx.x); e < tiles * kPairs; e += threads) {
      int i, j;
      if (Tiled) {
        pair_at(int(blockIdx.y) * kMaxSampleTiles + e / kPairs, (tasks + R - 1) / R, i, j);
        i = i * R + e % kPairs / R;
        j = j * R + e % R;
      } else {
        pair_at(e, R, i, j);
      }
      if (i > j || j >= tasks) continue;
      double sum = 0.0;
      for (int s = 0; s < slices; ++s) sum += warp_sums[s * tiles * kPairs + e];
      gram[i * tasks + j] = gram[j * tasks + i] = sum;
      if (solved) solved[i * tasks + j] = solved[j * tasks + i] = sum;
    }
  }
  if (!call.w) return;
  if (call.solves()) {
    solve_sample(call, blockIdx.x, tasks, memory, w);
  } else {
    for (int t = int(threadIdx.x); t < tasks; t += threads) w[t] = call.w[int64_t(blockIdx.x) * tasks + t];
  }
  GS_BLOCK_BARRIER(sample_weights);

  bool staged = call.gram != nullptr;  // whole samples, or the last window
  for (int p = table.pieces - 1; p >= 0; --p) {
    const SamplePiece piece(table, p);
    const int length = whole ? piece.words : call.window;
    if (whole && staged) place -= tasks * piece.words * kSampleWord;
    for (int first = piece.words == 0 ? -1 : (piece.words - 1) / length * length; first >= 0; first -= length) {
      const SampleWindow window{shared + place, first, min(length, piece.words - first)};
      if (!staged) {
        GS_BLOCK_BARRIER(sample_window_written);
        with_element<Run>(piece.entry.scalar, [&](auto tag) { stage_rows<typename decltype(tag)::type>(table, piece, window); });
        GS_BLOCK_BARRIER(sample_window_read);
      }
      staged = staged && whole;
      with_element<Run>(piece.entry.scalar, [&](auto tag) {
        write_window<typename decltype(tag)::type, Run>(table, piece, window, w, call.accumulate);
      });
    }
  }
}

constexpr int kAdvanceThreads = 1024;

static __global__ void __launch_bounds__(kAdvanceThreads)
    sample_advance(const int32_t* broken /* [B] */, int64_t samples, int64_t* key) {
  GS_SHARED(int, found, 1);
  if (threadIdx.x == 0) *found = 0;
  GS_BLOCK_BARRIER(sample_advance_start);
  bool any = false;
  for (int64_t b = threadIdx.x; b < samples; b += blockDim.x) any = any || broken[b] != 0;
  if (any) *found = 1;
  GS_BLOCK_BARRIER(sample_advance_found);
  if (threadIdx.x == 0 && *found == 0) key[1] += 1;
}

}  // namespace gradsurgery
