#include "gram_cuda.cuh"
#include "gram_mma_cuda.cuh"

namespace gradsurgery {
namespace {

using SmallKernel = void (*)(Table, double*);

constexpr SmallKernel kSmall[kSmallTasks] = {gram_small<1, float>, gram_small<2, float>, gram_small<3, float>,
                                             gram_small<4, float>, gram_small<5, float>, gram_small<6, float>,
                                             gram_small<7, float>, gram_small<8, float>};

// Fewer of them for float64, which is rare: products with absent rows cost less than the memory they wait for.
constexpr SmallKernel small_float64(int tasks) {
  return tasks <= 2 ? gram_small<2, double> : tasks <= 4 ? gram_small<4, double> : gram_small<8, double>;
}

}  // namespace

void gram_partials_cuda(const RowTable& table, double* partial, void* stream) {
  if (table.chunks() == 0) return;
  const GramLaunch launch = gram_launch(table);
  if (table.tasks() <= kSmallTasks) {
    const SmallKernel kernel = table.rows_float64() ? small_float64(table.tasks()) : kSmall[table.tasks() - 1];
    GS_LAUNCH(kernel, launch.blocks, launch.threads, 0, stream, table.parameter(), partial);
  } else {
    const auto kernel = uses_mma(table) ? gram_mma : table.rows_float64() ? gram_tiled<double> : gram_tiled<float>;
    GS_LAUNCH(kernel, launch.blocks * launch.panels, launch.threads, 0, stream, table.parameter(), launch.panels, partial);
  }
}

void gram_finish_cuda(const RowTable& table, const double* partial, double* gram, void* stream) {
  const int64_t per_block = kFinishThreads / kWarp, sums = pair_count(table.tasks()) * table.groups();
  const int64_t grid = (sums + per_block - 1) / per_block;
  GS_LAUNCH(gram_finish, unsigned(grid), kFinishThreads, 0, stream, table.parameter(), gram_launch(table).blocks, partial, gram);
}

}  // namespace gradsurgery
