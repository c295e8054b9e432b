// Kernels that update buffers: a thread reads a gradient and its buffer at the same coordinates, writes the buffer, and reduces.
#pragma once

#include "../common/cuda_elements.h"
#include "../common/cuda_reduce.cuh"
#include "../common/cuda_table.h"
#include "../gram/gram_cuda.cuh"
#include "buffers_cuda.h"

namespace gradsurgery {

// Coordinates at a time: 16 bytes of the wider of the two types.
template <class Element, class Buffer>
constexpr int kBufferedVector = sizeof(Element) > sizeof(Buffer) ? kVector<Element> : kVector<Buffer>;

// The gradient and the buffer of one task in one chunk, read and written Width coordinates at a time.
template <class Element, class Buffer>
struct BufferedRow {
  const char* g = nullptr;  // null: zeros
  char* y = nullptr;        // null: an absent task

  __device__ __forceinline__ void find(const Table& table, const Chunk& chunk, int tasks, int task) {
    if (task >= tasks) return;
    y = const_cast<char*>(row_pointer(table, chunk.piece, tasks + task));
    if (!y) return;
    y += chunk.start * int64_t(sizeof(Buffer));
    g = row_pointer(table, chunk.piece, task);
    if (g) g += chunk.start * int64_t(sizeof(Element));
  }

  template <int Width>
  __device__ __forceinline__ void load(int at, Raw<Width* int(sizeof(Element))>& gradient,
                                       Raw<Width* int(sizeof(Buffer))>& buffer) const {
    gradient = {};
    buffer = {};
    if (!y) return;
    buffer = load_raw<Width* int(sizeof(Buffer))>(y + at * int(sizeof(Buffer)));
    if (g) gradient = load_raw<Width* int(sizeof(Element))>(g + at * int(sizeof(Element)));
  }
};

// Calls `use` with the types of a piece's gradients and of its buffers. Buffers are float32 unless Run is double.
template <class Run, class Use>
__device__ __forceinline__ void with_buffered(const PieceEntry& entry, Use use) {
  with_element<Run>(entry.scalar, [&](auto element) {
    if constexpr (std::is_same_v<Run, double>) {
      if (entry.out_scalar == Scalar::f64) {
        use(element, Tag<double>{});
        return;
      }
    }
    use(element, Tag<float>{});
  });
}

template <class Run>
__device__ __forceinline__ Run not_a_number() {
  return Run(nanf(""));
}

__device__ __forceinline__ bool goes_ahead(const BufferedCuda& call) { return !call.valid || *call.valid; }

// --- exponential averages ---

// What becomes of one coordinate: what the buffer gets, and what counts in K.
template <class Buffer, class Run>
struct Averaged {
  Buffer stored;
  Run counted;

  __device__ __forceinline__ Averaged(Run g, Buffer old, Run scale, Run rate) {
    const Run y = convert<Run>(old);
    const Buffer changed = convert<Buffer>(y + rate * (scale * g - y));
    const bool finite = isfinite(changed);
    stored = finite ? changed : old;
    counted = finite ? convert<Run>(changed) : not_a_number<Run>();
  }
};

template <class Element, class Buffer, class Run, int Width>
__device__ __forceinline__ void average(char* to, const Raw<Width* int(sizeof(Element))>& gradient,
                                        const Raw<Width* int(sizeof(Buffer))>& buffer, Run scale, Run rate,
                                        Run (&counted)[Width]) {
  const auto g = unpack<Element, Width>(gradient);
  const auto y = unpack<Buffer, Width>(buffer);
  Pack<Buffer, Width> stored;
#pragma unroll
  for (int k = 0; k < Width; ++k) {
    const Averaged<Buffer, Run> now(convert<Run>(g.at[k]), y.at[k], scale, rate);
    stored.at[k] = now.stored;
    counted[k] = now.counted;
  }
  store_global(to, stored);
}

// What a task's gradient is multiplied by: in registers, or, where these are short, read again from the first-level cache.
template <int T, class Run>
class Scales {
 public:
  __device__ __forceinline__ Scales(const double* scales, int tasks) : scales_(scales), tasks_(tasks) {
    if constexpr (!kReread)
#pragma unroll
      for (int t = 0; t < T; ++t) kept_[t] = read(t);
  }

  __device__ __forceinline__ Run operator[](int t) const {
    if constexpr (kReread)
      return read(t);
    else
      return kept_[t];
  }

 private:
  static constexpr bool kReread = T >= 8;

  __device__ __forceinline__ Run read(int t) const { return t < tasks_ ? convert<Run>(scales_[t]) : Run(0); }

  const double* scales_;
  int tasks_;
  Run kept_[kReread ? 1 : T];
};

// `count` groups of Width coordinates, group v at position(v) of the chunk, of all T tasks side by side.
template <class Element, class Buffer, class Run, int T, int Width, class Position>
__device__ __forceinline__ void average_groups(const BufferedRow<Element, Buffer> (&rows)[T], const Scales<T, Run>& scale,
                                               Run rate, int count, Position position, Run (&run)[T * (T + 1) / 2]) {
#pragma unroll 1
  for (int v = int(threadIdx.x); v < count; v += kBufferThreads) {
    const int at = position(v);
    Raw<Width* int(sizeof(Element))> gradient[T];
    Raw<Width* int(sizeof(Buffer))> buffer[T];
#pragma unroll
    for (int t = 0; t < T; ++t) rows[t].template load<Width>(at, gradient[t], buffer[t]);
    Run counted[T][Width] = {};
#pragma unroll
    for (int t = 0; t < T; ++t)
      if (rows[t].y)
        average<Element, Buffer, Run, Width>(rows[t].y + at * int(sizeof(Buffer)), gradient[t], buffer[t], scale[t], rate,
                                             counted[t]);
#pragma unroll
    for (int k = 0; k < Width; ++k) {
      Run x[T];
#pragma unroll
      for (int t = 0; t < T; ++t) x[t] = counted[t][k];
      add_products<T>(x, run);
    }
  }
}

// Two blocks a multiprocessor hide the latency of memory; with float64 accumulators one has to do.
template <class Run>
constexpr int kBufferBlocks = sizeof(Run) == 4 ? 2 : 1;

// For up to T tasks; the sums are gram_small's.
template <int T, class Run>
__global__ void __launch_bounds__(kBufferThreads, kBufferBlocks<Run>)
    ema_gram_small(const __grid_constant__ Table table, const BufferedCuda call, const double* scales, const double* rate_,
                   double* partial /* [pairs, gridDim.x] */) {
  static_assert(kBufferThreads == kGramThreads, "chunks are as long as gram_small's");
  constexpr int kPairs = T * (T + 1) / 2, kWarps = kBufferThreads / kWarp;
  const bool ahead = goes_ahead(call);
  const Run rate = convert<Run>(*rate_);
  const Scales<T, Run> scale(scales, call.tasks);
  WarpSums<kPairs> sums;
  for (int c = ahead ? int(blockIdx.x) : table.chunks; c < table.chunks; c += int(gridDim.x)) {
    const Chunk chunk = find_chunk(table, c);
    const PieceEntry& entry = piece_entries(table)[chunk.piece];
    Run run[kPairs] = {};
    with_buffered<Run>(entry, [&](auto element, auto buffer) {
      using Element = typename decltype(element)::type;
      using Buffer = typename decltype(buffer)::type;
      constexpr int kWidth = kBufferedVector<Element, Buffer>;
      BufferedRow<Element, Buffer> rows[T];
#pragma unroll
      for (int t = 0; t < T; ++t) rows[t].find(table, chunk, call.tasks, t);
      const Split split(entry.head, chunk.length, kWidth);
      average_groups<Element, Buffer, Run, T, kWidth>(
          rows, scale, rate, split.vectors, [&](int v) { return split.vector_at(v, kWidth); }, run);
      average_groups<Element, Buffer, Run, T, 1>(
          rows, scale, rate, split.edges, [&](int e) { return split.edge_at(e, kWidth); }, run);
    });
    sums.add(run);
  }
  GS_SHARED(double, warp_sums, kWarps* kPairs);
  sums.store(warp_sums + int(threadIdx.x) / kWarp * kPairs);
  GS_BLOCK_BARRIER(ema_gram_small_sums);
  if (int(threadIdx.x) < kPairs) {
    int i, j;
    pair_at(int(threadIdx.x), T, i, j);
    if (j >= call.tasks) return;
    double sum = 0.0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += warp_sums[w * kPairs + int(threadIdx.x)];
    partial[pair_index(i, j, call.tasks) * gridDim.x + blockIdx.x] = ahead ? sum : not_a_number<double>();
  }
}

// Some coordinates of one row, Width at a time: change(g, old, stored) tells what the buffer gets.
template <class Element, class Buffer, int Width, class Position, class Change>
__device__ __forceinline__ void change_groups(const BufferedRow<Element, Buffer>& row, int count, Position position,
                                              Change change) {
  constexpr int kUnroll = Width > 1 ? 4 : 1;  // loads of 16 bytes in flight
#pragma unroll 1
  for (int first = int(threadIdx.x); first < count; first += kUnroll * kBufferThreads) {
    Raw<Width* int(sizeof(Element))> gradient[kUnroll];
    Raw<Width* int(sizeof(Buffer))> buffer[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int v = first + u * kBufferThreads;
      gradient[u] = {};
      buffer[u] = {};
      if (v < count) row.template load<Width>(position(v), gradient[u], buffer[u]);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int v = first + u * kBufferThreads;
      if (v >= count) continue;
      const auto g = unpack<Element, Width>(gradient[u]);
      const auto old = unpack<Buffer, Width>(buffer[u]);
      Pack<Buffer, Width> stored;
#pragma unroll
      for (int k = 0; k < Width; ++k) stored.at[k] = change(g.at[k], old.at[k]);
      store_global(row.y + position(v) * int(sizeof(Buffer)), stored);
    }
  }
}

// All of one task's coordinates in a chunk.
template <class Run, class Change>
__device__ __forceinline__ void change_chunk(const Table& table, const Chunk& chunk, int tasks, int task, Change change) {
  const PieceEntry& entry = piece_entries(table)[chunk.piece];
  with_buffered<Run>(entry, [&](auto element, auto buffer) {
    using Element = typename decltype(element)::type;
    using Buffer = typename decltype(buffer)::type;
    constexpr int kWidth = kBufferedVector<Element, Buffer>;
    BufferedRow<Element, Buffer> row;
    row.find(table, chunk, tasks, task);
    if (!row.y) return;
    const Split split(entry.head, chunk.length, kWidth);
    change_groups<Element, Buffer, kWidth>(row, split.vectors, [&](int v) { return split.vector_at(v, kWidth); }, change);
    change_groups<Element, Buffer, 1>(row, split.edges, [&](int e) { return split.edge_at(e, kWidth); }, change);
  });
}

// Block b works on task b % T and on every (gridDim.x / T)-th chunk.
template <class Run>
__global__ void __launch_bounds__(kBufferThreads, 2)
    ema_rows(const __grid_constant__ Table table, const BufferedCuda call, const double* scales, const double* rate_,
             int32_t* broken /* [T] */) {
  if (!goes_ahead(call)) return;
  const int task = int(blockIdx.x) % call.tasks, blocks = int(gridDim.x) / call.tasks;
  const Run scale = convert<Run>(scales[task]), rate = convert<Run>(*rate_);
  bool finite = true;
  for (int c = int(blockIdx.x) / call.tasks; c < table.chunks; c += blocks)
    change_chunk<Run>(table, find_chunk(table, c), call.tasks, task, [&](auto g, auto old) {
      const Averaged<decltype(old), Run> now(convert<Run>(g), old, scale, rate);
      finite = finite && isfinite(now.counted);
      return now.stored;
    });
  if (!finite) broken[task] = 1;  // whoever writes, writes the same
}

static __global__ void clear_broken(int tasks, int32_t* broken) {
  for (int t = int(threadIdx.x); t < tasks; t += int(blockDim.x)) broken[t] = 0;
}

static __global__ void refuse(const BufferedCuda call, const int32_t* broken, double* gram /* [T, T] */) {
  const bool ahead = goes_ahead(call);
  const int tasks = call.tasks;
  for (int k = int(threadIdx.x); k < tasks * tasks; k += int(blockDim.x))
    if (!ahead || broken[k / tasks] || broken[k % tasks]) gram[k] = not_a_number<double>();
}

// --- excess risks ---

// sqrt(a^2 + b^2) for a, b >= 0 or NaN, without squares that leave the range of the type.
template <class Run>
__device__ __forceinline__ Run root_of_squares(Run a, Run b) {
  const Run large = a > b ? a : b, small = a > b ? b : a;
  if (large == Run(0)) return Run(0);
  const Run ratio = small / large;
  return large * sqrt(Run(1) + ratio * ratio);
}

template <class Run>
__global__ void __launch_bounds__(kBufferThreads, 2)
    excess_risk(const __grid_constant__ Table table, const BufferedCuda call, double* partial /* [T, gridDim.x / T] */) {
  const bool ahead = goes_ahead(call);
  const int task = int(blockIdx.x) % call.tasks, block = int(blockIdx.x) / call.tasks, blocks = int(gridDim.x) / call.tasks;
  WarpSums<1> sums;
  for (int c = ahead ? block : table.chunks; c < table.chunks; c += blocks) {
    Run run[1] = {};
    change_chunk<Run>(table, find_chunk(table, c), call.tasks, task, [&](auto g_, auto old) {
      using Buffer = decltype(old);
      const Run g = convert<Run>(g_);
      const Run root = root_of_squares(convert<Run>(old), g < Run(0) ? -g : g);
      const Buffer changed = convert<Buffer>(root);
      const bool finite = isfinite(changed);
      run[0] += !finite ? not_a_number<Run>() : root == Run(0) ? Run(0) : g * (g / root);
      return finite ? changed : old;
    });
    sums.add(run);
  }
  GS_SHARED(double, warp_sums, kBufferThreads / kWarp);
  sums.store(warp_sums + int(threadIdx.x) / kWarp);
  GS_BLOCK_BARRIER(excess_risk_sums);
  if (threadIdx.x == 0) {
    double sum = 0.0;
    for (int w = 0; w < kBufferThreads / kWarp; ++w) sum += warp_sums[w];
    partial[int64_t(task) * blocks + block] = ahead ? sum : not_a_number<double>();
  }
}

static __global__ void __launch_bounds__(kWarp) finish_risk(int blocks, const double* partial, double* risk /* [T] */) {
  const double sum = sum_partials(partial + int64_t(blockIdx.x) * blocks, blocks);
  if (threadIdx.x == 0) risk[blockIdx.x] = sum;
}

}  // namespace gradsurgery
