// The coordinate-wise kernels: 16 bytes of each row at a time, every coordinate in one thread, no barriers. A thread reads all
// rows at its coordinates before it writes there, so that the output may be a row.
#pragma once

#include <utility>

#include "../weights/philox.h"
#include "combine_cuda.cuh"
#include "coordinatewise_cuda.h"

namespace gradsurgery {

// Rows of one piece from task `first` on; null: absent.
template <int Rows>
struct RowPointers {
  const char* row[Rows];

  __device__ __forceinline__ RowPointers(const Table& table, int piece, int first) {
#pragma unroll
    for (int r = 0; r < Rows; ++r) row[r] = first + r < table.tasks ? row_pointer(table, piece, first + r) : nullptr;
  }

  // Loads Width coordinates from position `at` of the piece on from each row; absent rows are zeros.
  template <class Element, int Width>
  __device__ __forceinline__ void load(int64_t at, Raw<Width* int(sizeof(Element))> (&data)[Rows]) const {
    constexpr int kBytes = int(sizeof(Element));
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      data[r] = {};
      if (row[r]) data[r] = load_raw<Width * kBytes>(row[r] + at * kBytes);
    }
  }
};

__device__ __forceinline__ int count_present(const Table& table, int piece) {
  int present = 0;
  for (int t = 0; t < table.tasks; ++t) present += row_pointer(table, piece, t) != nullptr;
  return present;
}

// Calls use(task, values) for every task, Rows loads at a time; More than Rows tasks when set.
template <class Element, class Run, int Width, int Rows, bool More, class Use>
__device__ __forceinline__ void for_each_task(const Table& table, int piece, const RowPointers<Rows>& first_rows, int64_t at,
                                              Use use) {
  const auto some = [&](const RowPointers<Rows>& rows, int first) {
    Raw<Width* int(sizeof(Element))> data[Rows];
    rows.template load<Element, Width>(at, data);
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      const Pack<Element, Width> pack = unpack<Element, Width>(data[r]);
      Run values[Width];
#pragma unroll
      for (int e = 0; e < Width; ++e) values[e] = convert<Run>(pack.at[e]);
      use(first + r, values);
    }
  };
  some(first_rows, 0);
  if constexpr (More)
    for (int first = Rows; first < table.tasks; first += Rows) some(RowPointers<Rows>(table, piece, first), first);
}

// Runs a rule over a chunk. Rule::apply<Element, Width>(at, result) computes Width coordinates from position `at` of the piece
// on; Rule::kWidth<Element> is how many it takes at a time.
template <class Run, class Rule>
__device__ __forceinline__ void apply_rule(const Table& table, const Chunk& chunk, const Rule& rule, bool accumulate) {
  const PieceEntry& entry = piece_entries(table)[chunk.piece];
  const Scalar out_scalar = entry.out_scalar;
  char* const out = output_pointer(table, chunk.piece);
  with_element<Run>(entry.scalar, [&](auto tag) {
    using Element = typename decltype(tag)::type;
    constexpr int kWidth = Rule::template kWidth<Element>;
    const Split split(entry.out_head, chunk.length, kWidth);
    for (int v = int(threadIdx.x); v < split.vectors; v += kCoordinatewiseThreads) {
      const int64_t at = chunk.start + split.vector_at(v, kWidth);
      Run result[kWidth];
      rule.template apply<Element, kWidth>(at, result);
      write_sums<Run, kWidth>(out_scalar, out, at, accumulate, result);
    }
    for (int e = int(threadIdx.x); e < split.edges; e += kCoordinatewiseThreads) {
      const int64_t at = chunk.start + split.edge_at(e, kWidth);
      Run result[1];
      rule.template apply<Element, 1>(at, result);
      write_sums<Run, 1>(out_scalar, out, at, accumulate, result);
    }
  });
}

// --- graddrop ---

// The random numbers of Width coordinates that follow each other.
template <int Width>
struct Draws {
  static constexpr int kBlocks = (Width + 3) / 4;
  uint32_t word[4 * kBlocks + 4];
  int skip;

  __device__ __forceinline__ Draws(const int64_t* key, int64_t coordinate) : skip(int(coordinate % 4)) {
    const uint64_t seed = uint64_t(key[0]), step = uint64_t(key[1]), first = uint64_t(coordinate) / 4;
#pragma unroll
    for (int b = 0; b <= kBlocks; ++b) {
      // The last block only where the coordinates do not begin with one.
      if (b < kBlocks || skip + Width > 4 * kBlocks)
        philox_block(uint32_t(seed), uint32_t(seed >> 32), uint32_t(step), uint32_t(step >> 32), uint32_t(first + b),
                     uint32_t((first + b) >> 32), word + 4 * b);
      else
        word[4 * b] = word[4 * b + 1] = word[4 * b + 2] = word[4 * b + 3] = 0;
    }
  }

  __device__ __forceinline__ double uniform(int e) const {
    // Selects, as a run-time index would move the words to local memory.
    const uint32_t bits = skip == 0 ? word[e] : skip == 1 ? word[e + 1] : skip == 2 ? word[e + 2] : word[e + 3];
    return (bits + 0.5) * (1.0 / 4294967296.0);  // neither 0 nor 1, where every sign would be dropped
  }
};

// With p the sum of the positive values and q that of the others: p where P = p / (p - q) > U, q where P < U, compared in
// float64 and without the division. Of what is dropped, the share `leak`.
template <class Run>
__device__ __forceinline__ Run keep_sign(Run p, Run q, Run leaked_p, Run leaked_q, double U) {
  const double up = double(p) * (1.0 - U), down = -double(q) * U;
  const Run kept = up > down ? p + leaked_q : up < down ? q + leaked_p : leaked_p + leaked_q;
  return kept + ((p - p) + (q - q));  // NaN where something is not finite
}

template <class Run, int Rows, bool More, bool Leak>
struct GradDropRule {
  const Table& table;
  int piece;
  const double* uniform;
  const int64_t* key;
  const double* leaks;  // [T]
  int64_t begin;        // of the piece among all coordinates
  RowPointers<Rows> first_rows;

  template <class Element>
  static constexpr int kWidth = kVector<Element>;

  template <class Element, int Width>
  __device__ __forceinline__ void apply(int64_t at, Run (&result)[Width]) const {
    Run p[Width] = {}, q[Width] = {}, leaked_p[Width] = {}, leaked_q[Width] = {};
    for_each_task<Element, Run, Width, Rows, More>(table, piece, first_rows, at, [&](int task, const Run(&x)[Width]) {
      Run leak = Run(0);
      if constexpr (Leak) leak = task < table.tasks ? convert<Run>(leaks[task]) : Run(0);
#pragma unroll
      for (int e = 0; e < Width; ++e) {
        const Run positive = x[e] > Run(0) ? x[e] : Run(0), other = x[e] > Run(0) ? Run(0) : x[e];
        p[e] += positive;
        q[e] += other;
        if constexpr (Leak) {
          leaked_p[e] += leak * positive;
          leaked_q[e] += leak * other;
        }
      }
    });
    if (uniform) {
#pragma unroll
      for (int e = 0; e < Width; ++e) result[e] = keep_sign(p[e], q[e], leaked_p[e], leaked_q[e], uniform[begin + at + e]);
    } else {
      const Draws<Width> draws(key, begin + at);
#pragma unroll
      for (int e = 0; e < Width; ++e) result[e] = keep_sign(p[e], q[e], leaked_p[e], leaked_q[e], draws.uniform(e));
    }
  }
};

template <int Rows, bool More, bool Leak, class Run>
__global__ void __launch_bounds__(kCoordinatewiseThreads, More && Leak && sizeof(Run) == 8 ? 1 : 2)
    graddrop_chunks(const __grid_constant__ Table table, const double* uniform /* [N] or null */, const int64_t* key /* [2] */,
                    bool accumulate) {
  const Chunk chunk = find_chunk(table, int(blockIdx.x));
  const int64_t* const begins = extra_words(table);
  const GradDropRule<Run, Rows, More, Leak> rule{table,
                                                 chunk.piece,
                                                 uniform,
                                                 key,
                                                 reinterpret_cast<const double*>(begins + table.pieces),
                                                 begins[chunk.piece],
                                                 RowPointers<Rows>(table, chunk.piece, 0)};
  apply_rule<Run>(table, chunk, rule, accumulate);
}

__global__ void advance_step(int64_t* key) { key[1] = int64_t(uint64_t(key[1]) + 1); }

// --- sign agreement ---

template <class Run, int Rows, bool More>
struct SignAgreementRule {
  const Table& table;
  int piece;
  int needed;
  Run divisor;
  RowPointers<Rows> first_rows;

  template <class Element>
  static constexpr int kWidth = kVector<Element>;

  template <class Element, int Width>
  __device__ __forceinline__ void apply(int64_t at, Run (&result)[Width]) const {
    Run total[Width] = {};
    int votes[Width] = {};
    for_each_task<Element, Run, Width, Rows, More>(table, piece, first_rows, at, [&](int, const Run(&x)[Width]) {
#pragma unroll
      for (int e = 0; e < Width; ++e) {
        total[e] += x[e];
        votes[e] += int(x[e] > Run(0)) - int(x[e] < Run(0));
      }
    });
#pragma unroll
    for (int e = 0; e < Width; ++e) {
      const Run agreeing = votes[e] >= needed || -votes[e] >= needed ? total[e] / divisor : Run(0);
      result[e] = agreeing + (total[e] - total[e]);  // NaN where something is not finite
    }
  }
};

template <int Rows, bool More, class Run>
__global__ void __launch_bounds__(kCoordinatewiseThreads, 2)
    sign_agreement_chunks(const __grid_constant__ Table table, double threshold, bool mean, bool accumulate) {
  const Chunk chunk = find_chunk(table, int(blockIdx.x));
  const int present = count_present(table, chunk.piece);
  const SignAgreementRule<Run, Rows, More> rule{table, chunk.piece, needed_votes(threshold, present),
                                                Run(mean && present > 0 ? present : 1), RowPointers<Rows>(table, chunk.piece, 0)};
  apply_rule<Run>(table, chunk, rule, accumulate);
}

// --- trimmed mean and median ---

template <int Low, int High, class Run, int Count>
__device__ __forceinline__ void exchange(Run (&x)[Count]) {
  const Run a = x[Low], b = x[High];
  x[Low] = fmin(a, b);
  x[High] = fmax(a, b);
}

template <int Count, class Run, size_t... I>
__device__ __forceinline__ void sort_values(Run (&x)[Count], std::index_sequence<I...>) {
  (exchange<kNetwork<Count>.low[I], kNetwork<Count>.high[I]>(x), ...);
}

// Up to Rows tasks, sorted in registers one coordinate after another; absent ones are sorted to the end.
template <class Run, int Rows>
struct SortedRule {
  Middle middle;
  RowPointers<Rows> rows;

  // Fewer bytes of more rows: all of them together have to fit the registers.
  static constexpr int kShare = Rows > 16 ? 4 : Rows > 8 ? 2 : 1;
  template <class Element>
  static constexpr int kWidth = kVector<Element> > kShare ? kVector<Element> / kShare : 1;

  template <class Element, int Width>
  __device__ __forceinline__ void apply(int64_t at, Run (&result)[Width]) const {
    Raw<Width* int(sizeof(Element))> data[Rows];
    rows.template load<Element, Width>(at, data);
#pragma unroll
    for (int e = 0; e < Width; ++e) {
      Run x[Rows], total = Run(0), poison = Run(0);
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
        const Run value = convert<Run>(unpack<Element, Width>(data[r]).at[e]);
        poison += value - value;  // NaN where it is not finite
        x[r] = rows.row[r] ? value : Run(INFINITY);
      }
      sort_values<Rows>(x, std::make_index_sequence<size_t(Network<Rows>::size)>());
#pragma unroll
      for (int r = 0; r < Rows; ++r)
        if (r >= middle.first && r < middle.last) total += x[r];
      result[e] = total / Run(middle.last > middle.first ? middle.last - middle.first : 1) + poison;
    }
  }
};

template <int Rows, class Run>
__global__ void __launch_bounds__(kCoordinatewiseThreads, sizeof(Run) == 4 && Rows <= 16 ? 2 : 1)
    sorted_chunks(const __grid_constant__ Table table, int trim, bool accumulate) {
  const Chunk chunk = find_chunk(table, int(blockIdx.x));
  const SortedRule<Run, Rows> rule{Middle(trim, count_present(table, chunk.piece)), RowPointers<Rows>(table, chunk.piece, 0)};
  apply_rule<Run>(table, chunk, rule, accumulate);
}

// Any number of tasks: a value counts when its rank does. Every value is read once for each task, out of the caches.
template <class Run>
struct RankedRule {
  const Table& table;
  int piece;
  Middle middle;

  template <class Element>
  static constexpr int kWidth = 1;

  template <class Element, int Width>
  __device__ __forceinline__ void apply(int64_t at, Run (&result)[Width]) const {
    static_assert(Width == 1, "");
    Run total = Run(0), poison = Run(0);
    for (int i = 0; i < table.tasks; ++i) {
      const char* const row = row_pointer(table, piece, i);
      if (!row) continue;
      const Run x = value<Element>(row, at);
      poison += x - x;
      int rank = 0;
      for (int j = 0; j < table.tasks; ++j) {
        const char* const other = row_pointer(table, piece, j);
        if (!other) continue;
        const Run y = value<Element>(other, at);
        rank += y < x || (y == x && j < i);
      }
      if (rank >= middle.first && rank < middle.last) total += x;
    }
    result[0] = total / Run(middle.last > middle.first ? middle.last - middle.first : 1) + poison;
  }

 private:
  template <class Element>
  static __device__ __forceinline__ Run value(const char* row, int64_t at) {
    return convert<Run>(load_global<Element>(row + at * int64_t(sizeof(Element))).at[0]);
  }
};

template <class Run>
__global__ void __launch_bounds__(kCoordinatewiseThreads, 2)
    ranked_chunks(const __grid_constant__ Table table, int trim, bool accumulate) {
  const Chunk chunk = find_chunk(table, int(blockIdx.x));
  const RankedRule<Run> rule{table, chunk.piece, Middle(trim, count_present(table, chunk.piece))};
  apply_rule<Run>(table, chunk, rule, accumulate);
}

}  // namespace gradsurgery
