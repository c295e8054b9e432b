// The T gradients as the kernels see them: P pieces (one a tensor position), each with T rows of equally many coordinates.
// Nothing is concatenated: a row is a pointer, and an absent gradient is a null pointer that reads as zeros.
#pragma once

#include <cstdint>
#include <vector>

namespace gradsurgery {

enum class Scalar : uint8_t { f64, f32, bf16, f16 };

constexpr int64_t size_of(Scalar scalar) { return scalar == Scalar::f64 ? 8 : scalar == Scalar::f32 ? 4 : 2; }

// A row whose elements do not lie in its piece's order: logical position -> memory by strides (in elements).
struct Strided {
  std::vector<int64_t> sizes;  // outermost first, in the piece's order of coordinates
  std::vector<int64_t> strides;
};

struct Row {
  const char* data = nullptr;  // null: the task has no gradient here
  int32_t strided = -1;        // index into Rows::strided, or -1 when the row is dense in the piece's order
  Scalar scalar = Scalar::f32;
};

struct Piece {
  int64_t numel = 0;
  int64_t begin = 0;  // of this piece in the virtual concatenation of all pieces
};

struct Rows {
  int tasks = 0;              // T
  int64_t numel = 0;          // N, the sum over the pieces
  std::vector<Piece> pieces;  // [P]
  std::vector<Row> rows;      // [P, T], piece-major
  std::vector<Row> out;       // [P] or empty: where combine writes
  std::vector<Strided> strided;
  // [G + 1], or empty for a single group: the pieces of group g are group_pieces[g] .. group_pieces[g + 1] - 1.
  std::vector<int64_t> group_pieces;

  int groups() const { return group_pieces.empty() ? 1 : int(group_pieces.size()) - 1; }
  // The first coordinate of group g in the virtual concatenation; of g = G, N.
  int64_t group_begin(int g) const {
    const int64_t piece = group_pieces[g];
    return piece < int64_t(pieces.size()) ? pieces[piece].begin : numel;
  }
  const Row& row(int64_t piece, int task) const { return rows[piece * tasks + task]; }
};

}  // namespace gradsurgery
