// The rows as kernels see them: one table of pieces and row pointers, however many tensors and groups of them there are, so that
// every stage is one launch. Coordinates are worked on in chunks; chunk c of a launch is found by a binary search over the
// pieces, which are sorted by group.
#pragma once

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "macros.h"
#include "rows.h"

namespace gradsurgery {

struct PieceEntry {
  int64_t numel;
  char* out;            // null where nothing is written
  int32_t first_chunk;  // the pieces' chunks are numbered through
  Scalar scalar;        // of all rows of this piece
  Scalar out_scalar;
  int8_t head;      // coordinates before the first that lies on a 16-byte border in every row; kNoBorder where there is none
  int8_t out_head;  // likewise, of the output, too: the bits of K do not depend on where that lies
};

constexpr int8_t kNoBorder = -1;
constexpr int kSmallTasks = 8;  // up to here one thread accumulates all pairs, above it a warp a tile of them
constexpr int kMinChunk = 2048, kMaxChunk = 32768, kMaxTiledChunk = 4096;
// Chunks, and a block's turns among them, are counted in 32 bits. So many whole chunks are more than 4e12 coordinates a row, and
// no smaller ones are made but 1024 and a last one a piece: no device has the memory.
constexpr int kMostChunks = 1 << 30;
constexpr int kTableWords = 480;  // 3840 bytes; a launch takes at most 4 KB of parameters on every CUDA version

// A kernel parameter. Small tables ride in it; larger ones lie in device memory and are written there by launches that carry
// them in their parameters, slice by slice (write_table). Parameters are copied when a launch is issued or captured: no
// host buffer has to outlive the call or a CUDA graph, nothing is cached by address, and the host never waits.
struct Table {
  const int64_t* device;  // null: the words are below
  int32_t tasks;
  int32_t pieces;
  int32_t chunks;
  int32_t chunk_length;
  int32_t groups;
  // PieceEntry [P], row pointers [P, T], with several groups their first chunks [G + 1], then what a stage wants besides.
  int64_t words[kTableWords];
};

struct Chunk {
  int64_t start;  // in the piece
  int32_t length;
  int32_t piece;
};

GS_HOST_DEVICE const int64_t* table_words(const Table& table) { return table.device ? table.device : table.words; }

GS_HOST_DEVICE const PieceEntry* piece_entries(const Table& table) {
  return reinterpret_cast<const PieceEntry*>(table_words(table));
}

GS_HOST_DEVICE const char* row_pointer(const Table& table, int piece, int task) {
  const auto rows = reinterpret_cast<const char* const*>(piece_entries(table) + table.pieces);
  return rows[int64_t(piece) * table.tasks + task];
}

// The first chunk of each group, and the number of chunks: [G + 1], where there are several groups.
GS_HOST_DEVICE const int64_t* group_chunks(const Table& table) {
  return table_words(table) + table.pieces * (int64_t(sizeof(PieceEntry) / 8) + table.tasks);
}

// Where the words begin that a stage wants besides.
GS_HOST_DEVICE int64_t extra_words(const Table& table) {
  return int64_t(table.pieces) * (int64_t(sizeof(PieceEntry) / 8) + table.tasks) + (table.groups > 1 ? table.groups + 1 : 0);
}

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

inline bool has_border(uintptr_t address, int64_t head, int64_t bytes, int64_t width) {
  return (address + head * bytes) % std::min<int64_t>(16, width * bytes) == 0;
}

// The head of a piece with these present rows, and this output unless it is null.
inline int8_t find_head(const std::vector<const char*>& rows, Scalar scalar, const char* out, Scalar out_scalar) {
  if (rows.empty()) return out ? find_head({out}, out_scalar, nullptr, out_scalar) : kNoBorder;
  const int64_t bytes = size_of(scalar), width = 16 / bytes;
  const auto past = int64_t(reinterpret_cast<uintptr_t>(rows.front()) % 16);
  const int64_t head = past == 0 ? 0 : (16 - past) / bytes;
  for (const char* row : rows)
    if (!has_border(reinterpret_cast<uintptr_t>(row), head, bytes, width)) return kNoBorder;
  if (out && !has_border(reinterpret_cast<uintptr_t>(out), head, size_of(out_scalar), width)) return kNoBorder;
  return int8_t(head);
}

// Likewise, of gradients beside their buffers, in groups that are 16 bytes of the wider of the two types.
inline int8_t find_buffered_head(const std::vector<const char*>& buffers, Scalar buffer_scalar,
                                 const std::vector<const char*>& rows, Scalar scalar) {
  const bool wider = size_of(scalar) > size_of(buffer_scalar);
  const Scalar wide = wider ? scalar : buffer_scalar, narrow = wider ? buffer_scalar : scalar;
  const int8_t head = find_head(wider ? rows : buffers, wide, nullptr, wide);
  if (head == kNoBorder) return kNoBorder;
  for (const char* row : wider ? buffers : rows)
    if (!has_border(reinterpret_cast<uintptr_t>(row), head, size_of(narrow), 16 / size_of(wide))) return kNoBorder;
  return head;
}

// The table of one call. The rows must be dense, and of one scalar type within a piece.
class RowTable {
 public:
  explicit RowTable(const Rows& rows, const std::vector<int64_t>& extra = {}) {
    table_.tasks = rows.tasks;
    table_.pieces = int32_t(rows.pieces.size());
    table_.chunk_length = chunk_length(rows.numel, rows.tasks);
    table_.groups = rows.groups();
    const size_t entry_words = rows.pieces.size() * sizeof(PieceEntry) / 8;
    words_.resize(entry_words + rows.rows.size() + rows.group_pieces.size());
    std::vector<const char*> present;
    int64_t chunks = 0;
    for (size_t p = 0; p < rows.pieces.size(); ++p) {
      present.clear();
      PieceEntry entry{};
      entry.numel = rows.pieces[p].numel;
      entry.first_chunk = int32_t(chunks);
      if (!rows.out.empty()) {
        entry.out = const_cast<char*>(rows.out[p].data);
        entry.scalar = entry.out_scalar = rows.out[p].scalar;
        out_float64_ = out_float64_ || entry.out_scalar == Scalar::f64;
      }
      for (int t = 0; t < rows.tasks; ++t) {
        const Row& row = rows.row(int64_t(p), t);
        words_[entry_words + p * rows.tasks + t] = int64_t(reinterpret_cast<uintptr_t>(row.data));
        if (!row.data) continue;
        present.push_back(row.data);
        entry.scalar = row.scalar;
        rows_float64_ = rows_float64_ || row.scalar == Scalar::f64;
        rows_16_bit_ = rows_16_bit_ && size_of(row.scalar) == 2;
      }
      entry.head = find_head(present, entry.scalar, nullptr, entry.scalar);
      entry.out_head = find_head(present, entry.scalar, entry.out, entry.out_scalar);
      std::memcpy(words_.data() + p * sizeof(PieceEntry) / 8, &entry, sizeof entry);
      chunks += (entry.numel + table_.chunk_length - 1) / table_.chunk_length;
    }
    words_.insert(words_.end(), extra.begin(), extra.end());
    table_.chunks = checked(chunks);
    for (size_t g = 0; g < rows.group_pieces.size(); ++g) {
      const size_t p = size_t(rows.group_pieces[g]), at = p * sizeof(PieceEntry);
      int64_t first = chunks;
      if (p < rows.pieces.size()) {
        PieceEntry entry;
        std::memcpy(&entry, reinterpret_cast<const char*>(words_.data()) + at, sizeof entry);
        first = entry.first_chunk;
      }
      words_[entry_words + rows.rows.size() + g] = first;
    }
    table_.device = nullptr;
    if (words_.size() <= kTableWords) std::copy(words_.begin(), words_.end(), table_.words);
  }

  // Gradients and the buffers that belong to them: 2 T rows a piece, the T gradients first. An entry's scalar is that of the
  // gradients, out_scalar that of the buffers; out stays null.
  RowTable(const Rows& grads, const Rows& buffers) {
    const int T = grads.tasks;
    table_.tasks = 2 * T;
    table_.pieces = int32_t(grads.pieces.size());
    table_.chunk_length = chunk_length(grads.numel, T);
    table_.groups = 1;
    const size_t entry_words = grads.pieces.size() * sizeof(PieceEntry) / 8;
    words_.resize(entry_words + 2 * grads.rows.size());
    std::vector<const char*> rows, kept;
    int64_t chunks = 0;
    for (size_t p = 0; p < grads.pieces.size(); ++p) {
      rows.clear();
      kept.clear();
      PieceEntry entry{};
      entry.numel = grads.pieces[p].numel;
      entry.first_chunk = int32_t(chunks);
      entry.scalar = entry.out_scalar = Scalar::f32;
      for (int t = 0; t < T; ++t) {
        const Row &g = grads.row(int64_t(p), t), &y = buffers.row(int64_t(p), t);
        int64_t* const word = words_.data() + entry_words + p * 2 * T;
        word[t] = int64_t(reinterpret_cast<uintptr_t>(g.data));
        word[T + t] = int64_t(reinterpret_cast<uintptr_t>(y.data));
        if (g.data) {
          rows.push_back(g.data);
          entry.scalar = g.scalar;
        }
        if (y.data) {
          kept.push_back(y.data);
          entry.out_scalar = y.scalar;
        }
        rows_float64_ = rows_float64_ || (g.data && g.scalar == Scalar::f64) || (y.data && y.scalar == Scalar::f64);
      }
      entry.head = entry.out_head = find_buffered_head(kept, entry.out_scalar, rows, entry.scalar);
      std::memcpy(words_.data() + p * sizeof(PieceEntry) / 8, &entry, sizeof entry);
      chunks += (entry.numel + table_.chunk_length - 1) / table_.chunk_length;
    }
    table_.chunks = checked(chunks);
    table_.device = nullptr;
    if (words_.size() <= kTableWords) std::copy(words_.begin(), words_.end(), table_.words);
  }

  int tasks() const { return table_.tasks; }
  int chunks() const { return table_.chunks; }
  int groups() const { return table_.groups; }
  bool rows_float64() const { return rows_float64_; }  // in one row at least
  bool rows_16_bit() const { return rows_16_bit_; }    // all rows
  bool any_float64() const { return rows_float64_ || out_float64_; }
  const Table& parameter() const { return table_; }
  const std::vector<int64_t>& words() const { return words_; }

  // Bytes of device memory that it needs; 0 when it rides in the parameters.
  int64_t device_bytes() const { return words_.size() <= kTableWords ? 0 : int64_t(words_.size()) * 8; }
  void place(void* device) { table_.device = static_cast<const int64_t*>(device); }

  // Whether the caller has to write the words to the device now; true once.
  bool take_upload() {
    const bool needed = table_.device && !uploaded_;
    uploaded_ = true;
    return needed;
  }

 private:
  static int32_t checked(int64_t chunks) {
    if (chunks > kMostChunks)
      throw std::length_error("gradsurgery: the gradients have more coordinates than chunks can be counted");
    return int32_t(chunks);
  }

  static_assert(sizeof(PieceEntry) % 8 == 0, "the row pointers follow the entries");
  Table table_;
  std::vector<int64_t> words_;
  bool rows_float64_ = false, out_float64_ = false, rows_16_bit_ = true;
  bool uploaded_ = false;
};

}  // namespace gradsurgery
