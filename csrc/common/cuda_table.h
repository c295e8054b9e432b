// The rows as kernels see them: one table of pieces and row pointers, however many tensors and groups of them there are, so that
// every stage is one launch. Coordinates are worked on in chunks; chunk c of a launch is found by a binary search over the
// pieces, which are sorted by group.
#pragma once

#include <algorithm>
#include <new>
#include <stdexcept>
#include <vector>

#include "macros.h"
#include "rows.h"

namespace gradsurgery {

// Where nothing is written, out_scalar and out_head are as for an output of the rows' type and alignment: then the passes of a
// step over the same rows, with and without outputs, have the same entries, and share them in device memory.
struct PieceEntry {
  int64_t numel;
  int32_t first_chunk;  // the pieces' chunks are numbered through
  Scalar scalar;        // of all rows of this piece
  Scalar out_scalar;
  int8_t head;      // coordinates before the first that lies on a 16-byte border in every row; kNoBorder where there is none
  int8_t out_head;  // likewise, of the output, too: the bits of K do not depend on where that lies
};
static_assert(sizeof(PieceEntry) == 16, "whole words, without padding that could differ between equal tables");

constexpr int8_t kNoBorder = -1;
constexpr int kSmallTasks = 8;  // up to here one thread accumulates all pairs, above it a warp a tile of them
constexpr int kMinChunk = 2048, kMaxChunk = 32768, kMaxTiledChunk = 4096;
// Chunks, and a block's turns among them, are counted in 32 bits. So many whole chunks are more than 4e12 coordinates a row, and
// no smaller ones are made but 1024 and a last one a piece: no device has the memory.
constexpr int kMostChunks = 1 << 30;
constexpr int kTableWords = 480;  // 3840 bytes; a launch takes at most 4 KB of parameters on every CUDA version

// A kernel parameter. Its words are in two parts: the rows, which are mostly those of the call before, and the outputs.
// Small parts ride in the parameter itself; larger ones lie in device memory (TableOnDevice).
struct Table {
  const int64_t* rows;     // null: in `words`, from the first on
  const int64_t* outputs;  // null: in `words`, from outputs_at on
  int32_t tasks;
  int32_t pieces;
  int32_t chunks;
  int32_t chunk_length;
  int32_t groups;
  int32_t outputs_at;
  // Rows: their pointers [P, T], PieceEntry [P], with several groups their first chunks [G + 1].
  // Outputs: their pointers [P], then what a stage wants besides; nothing where nothing is written.
  int64_t words[kTableWords];
};

struct Chunk {
  int64_t start;  // in the piece
  int32_t length;
  int32_t piece;
};

GS_HOST_DEVICE const int64_t* row_words(const Table& table) { return table.rows ? table.rows : table.words; }

GS_HOST_DEVICE const int64_t* output_words(const Table& table) {
  return table.outputs ? table.outputs : table.words + table.outputs_at;
}

GS_HOST_DEVICE const char* row_pointer(const Table& table, int piece, int task) {
  return reinterpret_cast<const char* const*>(row_words(table))[int64_t(piece) * table.tasks + task];
}

GS_HOST_DEVICE const PieceEntry* piece_entries(const Table& table) {
  return reinterpret_cast<const PieceEntry*>(row_words(table) + int64_t(table.pieces) * table.tasks);
}

// The first chunk of each group, and the number of chunks: [G + 1], where there are several groups.
GS_HOST_DEVICE const int64_t* group_chunks(const Table& table) {
  return reinterpret_cast<const int64_t*>(piece_entries(table) + table.pieces);
}

GS_HOST_DEVICE char* output_pointer(const Table& table, int piece) {
  return reinterpret_cast<char* const*>(output_words(table))[piece];
}

// What a stage wants besides.
GS_HOST_DEVICE const int64_t* extra_words(const Table& table) { return output_words(table) + table.pieces; }

// The last of 0..count-1 whose value is at most x, where value(0) is and values do not fall.
template <class Value>
GS_HOST_DEVICE int last_at_most(int64_t x, int count, Value value) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (value(middle) <= x)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// The group of chunk c; empty groups own none.
GS_HOST_DEVICE int find_group(const Table& table, int c) {
  if (table.groups == 1) return 0;
  const int64_t* const first = group_chunks(table);
  return last_at_most(c, table.groups, [&](int g) { return first[g]; });
}

GS_HOST_DEVICE Chunk find_chunk(const Table& table, int c) {
  const PieceEntry* entries = piece_entries(table);
  const int piece = last_at_most(c, table.pieces, [&](int p) { return entries[p].first_chunk; });  // empty pieces own none
  const int64_t start = int64_t(c - entries[piece].first_chunk) * table.chunk_length;
  const int64_t left = entries[piece].numel - start;
  return Chunk{start, left < table.chunk_length ? int32_t(left) : table.chunk_length, piece};
}

// A chunk's coordinates: `vectors` aligned groups of `width` from `head` on, and `edges` single ones around them.
struct Split {
  int head, vectors, edges;

  GS_HOST_DEVICE Split(int piece_head, int length, int width) {
    head = piece_head == kNoBorder || piece_head > length ? length : piece_head;
    vectors = (length - head) / width;
    edges = length - vectors * width;
  }
  GS_HOST_DEVICE int vector_at(int v, int width) const { return head + v * width; }
  GS_HOST_DEVICE int edge_at(int e, int width) const { return e < head ? e : e + vectors * width; }
};

// --- host ---

// About a thousand chunks, within the limits. It depends on N and T alone, so the order of additions, and with it the bits of K,
// are the same on every GPU.
inline int chunk_length(int64_t numel, int tasks) {
  const int longest = tasks <= kSmallTasks ? kMaxChunk : kMaxTiledChunk;
  int length = kMinChunk;
  while (length < longest && int64_t(length) * 1024 < numel) length *= 2;
  return length;
}

// Words in host memory, not owned.
struct Words {
  const int64_t* data = nullptr;
  size_t count = 0;
};

// Rows of one type as they stand in a table; null ones are absent.
struct RowWords {
  const int64_t* first;
  int count;
  Scalar scalar;
  int64_t some;  // one of those present, or null

  // Whether, from coordinate `head` on, groups of `width` are aligned for accesses of up to 16 bytes in all rows.
  bool aligned(int64_t head, int64_t width) const {
    const int64_t border = std::min<int64_t>(16, width * size_of(scalar)) - 1;  // a power of two, less one
    int64_t past = 0;
    for (int t = 0; t < count; ++t)
      if (first[t]) past |= first[t] + head * size_of(scalar);
    return (past & border) == 0;
  }
};

inline int8_t find_head(const RowWords& rows) {
  if (!rows.some) return kNoBorder;
  const int64_t head = (-rows.some & 15) / size_of(rows.scalar);
  return rows.aligned(head, 16 / size_of(rows.scalar)) ? int8_t(head) : kNoBorder;
}

// `head`, which 16 bytes of rows of type `scalar` have, where as many coordinates of `others` are aligned there, too.
inline int8_t shared_head(int8_t head, Scalar scalar, const RowWords& others) {
  return head != kNoBorder && others.aligned(head, 16 / size_of(scalar)) ? head : kNoBorder;
}

// The table of one call. The rows must be dense, and of one scalar type within a piece.
class RowTable {
 public:
  explicit RowTable(const Rows& rows, const std::vector<int64_t>& extra = {})
      : RowTable(rows, rows.tasks, rows.out.size() + extra.size()) {
    int64_t* const outputs = words_.data() + row_count_;
    for (int p = 0; p < table_.pieces; ++p) {
      const RowWords present = set_rows(p, 0, &rows.row(p, 0), rows.tasks, rows.out.empty() ? Scalar::f32 : rows.out[p].scalar);
      PieceEntry& entry = add_entry(p, rows.pieces[p].numel);
      entry.scalar = entry.out_scalar = present.scalar;
      entry.head = entry.out_head = find_head(present);
      rows_float64_ = rows_float64_ || (present.some && present.scalar == Scalar::f64);
      rows_16_bit_ = rows_16_bit_ && (!present.some || size_of(present.scalar) == 2);
      if (rows.out.empty()) continue;
      outputs[p] = address(rows.out[p]);
      const RowWords out{outputs + p, 1, rows.out[p].scalar, outputs[p]};
      entry.out_scalar = out.scalar;
      entry.out_head = present.some ? shared_head(entry.head, entry.scalar, out) : find_head(out);
      out_float64_ = out_float64_ || out.scalar == Scalar::f64;
    }
    std::copy(extra.begin(), extra.end(), outputs + rows.out.size());
    number_groups(rows.group_pieces);
    fill_parameter();
  }

  // Gradients and the buffers that belong to them: 2 T rows a piece, the T gradients first. An entry's scalar is that of the
  // gradients, out_scalar that of the buffers; there are no outputs.
  RowTable(const Rows& grads, const Rows& buffers) : RowTable(grads, 2 * grads.tasks, 0) {
    const int T = grads.tasks;
    for (int p = 0; p < table_.pieces; ++p) {
      const RowWords rows = set_rows(p, 0, &grads.row(p, 0), T, Scalar::f32);
      const RowWords kept = set_rows(p, T, &buffers.row(p, 0), T, Scalar::f32);
      // Groups are 16 bytes of the wider type.
      const bool wider = size_of(rows.scalar) > size_of(kept.scalar);
      const RowWords &wide = wider ? rows : kept, &narrow = wider ? kept : rows;
      PieceEntry& entry = add_entry(p, grads.pieces[p].numel);
      entry.scalar = rows.scalar;
      entry.out_scalar = kept.scalar;
      entry.head = entry.out_head = shared_head(find_head(wide), wide.scalar, narrow);
      rows_float64_ = rows_float64_ || rows.scalar == Scalar::f64 || kept.scalar == Scalar::f64;
      rows_16_bit_ = false;  // buffers are not
    }
    fill_parameter();
  }

  int tasks() const { return table_.tasks; }
  int chunks() const { return table_.chunks; }
  int groups() const { return table_.groups; }
  bool rows_float64() const { return rows_float64_; }  // in one row at least
  bool rows_16_bit() const { return rows_16_bit_; }    // all rows
  bool any_float64() const { return rows_float64_ || out_float64_; }
  const Table& parameter() const { return table_; }
  const PieceEntry* entries() const {
    return reinterpret_cast<const PieceEntry*>(words_.data() + size_t(table_.pieces) * table_.tasks);
  }

  // The parts that the parameter has no room for, and that have to be placed before a kernel runs: each may be empty.
  Words large_rows() const { return rows_ride_ ? Words{} : Words{words_.data(), row_count_}; }
  Words large_outputs() const { return outputs_ride_ ? Words{} : Words{words_.data() + row_count_, words_.size() - row_count_}; }
  void place(const int64_t* rows, const int64_t* outputs) {
    table_.rows = rows;
    table_.outputs = outputs;
  }

 private:
  static constexpr size_t kEntryWords = sizeof(PieceEntry) / 8;

  // With room for `width` rows a piece.
  RowTable(const Rows& rows, int width, size_t output_words) : table_() {
    table_.tasks = width;
    table_.pieces = int32_t(rows.pieces.size());
    table_.chunk_length = chunk_length(rows.numel, rows.tasks);
    table_.groups = rows.groups();
    row_count_ = rows.pieces.size() * (width + kEntryWords) + rows.group_pieces.size();
    words_.resize(row_count_ + output_words);
  }

  static int64_t address(const Row& row) { return int64_t(reinterpret_cast<uintptr_t>(row.data)); }

  // Some rows of a piece, `at` the place of the first; of type `otherwise` where none is present.
  RowWords set_rows(int piece, int at, const Row* rows, int count, Scalar otherwise) {
    int64_t* const to = words_.data() + size_t(piece) * table_.tasks + at;
    RowWords result{to, count, otherwise, 0};
    for (int t = 0; t < count; ++t) {
      to[t] = address(rows[t]);
      if (!to[t]) continue;
      result.scalar = rows[t].scalar;
      result.some = to[t];
    }
    return result;
  }

  static int32_t checked(int64_t chunks) {
    if (chunks > kMostChunks)
      throw std::length_error("gradsurgery: the gradients have more coordinates than chunks can be counted");
    return int32_t(chunks);
  }

  PieceEntry& add_entry(int piece, int64_t numel) {
    PieceEntry& entry = *new (const_cast<PieceEntry*>(entries()) + piece) PieceEntry{};
    entry.numel = numel;
    entry.first_chunk = table_.chunks;
    table_.chunks = checked(table_.chunks + (numel + table_.chunk_length - 1) / table_.chunk_length);
    return entry;
  }

  void number_groups(const std::vector<int64_t>& group_pieces) {
    int64_t* const first = words_.data() + row_count_ - group_pieces.size();
    for (size_t g = 0; g < group_pieces.size(); ++g)
      first[g] = group_pieces[g] < table_.pieces ? entries()[group_pieces[g]].first_chunk : table_.chunks;
  }

  void fill_parameter() {
    const size_t outputs = words_.size() - row_count_;
    rows_ride_ = words_.size() <= kTableWords;
    outputs_ride_ = outputs <= kTableWords;
    table_.outputs_at = rows_ride_ ? int32_t(row_count_) : 0;
    if (rows_ride_) std::copy_n(words_.data(), row_count_, table_.words);
    if (outputs_ride_) std::copy_n(words_.data() + row_count_, outputs, table_.words + table_.outputs_at);
  }

  Table table_;
  std::vector<int64_t> words_;                     // the rows' part, then that of the outputs
  size_t row_count_ = 0;                           // words of the rows' part
  bool rows_ride_ = false, outputs_ride_ = false;  // in the parameter
  bool rows_float64_ = false, out_float64_ = false, rows_16_bit_ = true;
};

}  // namespace gradsurgery
