// out = f(g_1, .., g_T) coordinate by coordinate on a CUDA device.
#pragma once

#include <cstring>

#include "../common/cuda_table.h"
#include "coordinatewise.h"

namespace gradsurgery {

constexpr int kCoordinatewiseThreads = 256;
constexpr int kSortedRows = 16;  // up to here a thread sorts in registers; beyond, it counts ranks

// What graddrop wants in the table besides the rows: where each piece begins among all coordinates [P], and the leaks [T] or
// none.
inline std::vector<int64_t> table_extras(const Rows& rows, const Rule& rule) {
  std::vector<int64_t> words;
  if (!rule.draws()) return words;
  for (const Piece& piece : rows.pieces) words.push_back(piece.begin);
  const size_t begins = words.size();
  words.resize(begins + rule.leak.size());
  std::memcpy(words.data() + begins, rule.leak.data(), rule.leak.size() * sizeof(double));
  return words;
}

// As coordinatewise_cpu, with sums and comparisons in float32 (float64 as soon as one tensor of the call is float64); which sign
// graddrop keeps is decided in float64. `uniform` and `key` lie on the device; `stream` is a cudaStream_t.
void coordinatewise_cuda(const RowTable& table, const Rule& rule, const double* uniform, int64_t* key, bool accumulate,
                         void* stream);

}  // namespace gradsurgery
