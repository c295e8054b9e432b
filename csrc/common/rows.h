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

  const Row& row(int64_t piece, int task) const { return rows[piece * tasks + task]; }
};

}  // namespace gradsurgery
