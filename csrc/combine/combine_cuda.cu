#include "combine_cuda.cuh"

namespace gradsurgery {
namespace {

using Kernel = void (*)(Table, const double*, bool);

constexpr Kernel kFloat[] = {combine_chunks<1, false, float>, combine_chunks<2, false, float>, combine_chunks<3, false, float>,
                             combine_chunks<4, false, float>, combine_chunks<5, false, float>, combine_chunks<6, false, float>,
                             combine_chunks<7, false, float>, combine_chunks<8, false, float>, combine_chunks<8, true, float>};

// Fewer of them for float64, which is rare.
constexpr Kernel float64_kernel(int tasks) {
  return tasks <= 2   ? combine_chunks<2, false, double>
         : tasks <= 4 ? combine_chunks<4, false, double>
         : tasks <= 8 ? combine_chunks<8, false, double>
                      : combine_chunks<8, true, double>;
}

}  // namespace

void combine_cuda(const RowTable& table, const double* weights, bool accumulate, void* stream) {
  if (table.chunks() == 0) return;
  const Kernel kernel = table.any_float64() ? float64_kernel(table.tasks()) : kFloat[std::min(table.tasks(), 9) - 1];
  GS_LAUNCH(kernel, combine_blocks(table.chunks()), kCombineThreads, 0, stream, table.parameter(), weights, accumulate);
}

}  // namespace gradsurgery
