// Writes a large table to device memory through kernel parameters; see Table.
#pragma once

#include "cuda_compat.h"
#include "cuda_table.h"

namespace gradsurgery {

struct TableSlice {
  int64_t words[kTableWords];
};

static __global__ void write_table(const __grid_constant__ TableSlice slice, int count, int64_t* to) {
  for (int k = threadIdx.x; k < count; k += blockDim.x) to[k] = slice.words[k];
}

inline void upload(RowTable& table, void* stream) {
  if (!table.take_upload()) return;
  const std::vector<int64_t>& words = table.words();
  for (size_t first = 0; first < words.size(); first += kTableWords) {
    TableSlice slice;
    const int count = int(std::min<size_t>(kTableWords, words.size() - first));
    std::copy_n(words.begin() + first, count, slice.words);
    GS_LAUNCH(write_table, 1, 256, 0, stream, slice, count, const_cast<int64_t*>(table.parameter().device) + first);
  }
}

}  // namespace gradsurgery
