#include "buffers_cuda.cuh"

namespace gradsurgery {
namespace {

using SmallAverage = void (*)(Table, BufferedCuda, const double*, const double*, double*);

constexpr SmallAverage kSmallAverages[kSmallTasks] = {
    ema_gram_small<1, float>, ema_gram_small<2, float>, ema_gram_small<3, float>, ema_gram_small<4, float>,
    ema_gram_small<5, float>, ema_gram_small<6, float>, ema_gram_small<7, float>, ema_gram_small<8, float>};

// Fewer of them for float64, which is rare.
constexpr SmallAverage small_average_float64(int tasks) {
  return tasks <= 2 ? ema_gram_small<2, double> : tasks <= 4 ? ema_gram_small<4, double> : ema_gram_small<8, double>;
}

}  // namespace

void ema_gram_cuda(const RowTable& table, const BufferedCuda& call, const double* scales, const double* rate, double* partial,
                   void* stream) {
  const SmallAverage kernel = table.rows_float64() ? small_average_float64(call.tasks) : kSmallAverages[call.tasks - 1];
  GS_LAUNCH(kernel, gram_launch(call.tasks, table.chunks(), 1).blocks, kBufferThreads, 0, stream, table.parameter(), call, scales,
            rate, partial);
}

void ema_rows_cuda(const RowTable& table, const BufferedCuda& call, const double* scales, const double* rate, int32_t* broken,
                   void* stream) {
  GS_LAUNCH(clear_broken, 1, kBufferThreads, 0, stream, call.tasks, broken);
  if (table.chunks() == 0) return;
  const auto kernel = table.rows_float64() ? ema_rows<double> : ema_rows<float>;
  GS_LAUNCH(kernel, unsigned(risk_blocks(call.tasks, table.chunks()) * call.tasks), kBufferThreads, 0, stream, table.parameter(),
            call, scales, rate, broken);
}

void refuse_cuda(const BufferedCuda& call, const int32_t* broken, double* gram, void* stream) {
  GS_LAUNCH(refuse, 1, kBufferThreads, 0, stream, call, broken, gram);
}

void excess_risk_cuda(const RowTable& table, const BufferedCuda& call, double* partial, double* risk, void* stream) {
  const int blocks = risk_blocks(call.tasks, table.chunks());
  const auto kernel = table.rows_float64() ? excess_risk<double> : excess_risk<float>;
  GS_LAUNCH(kernel, unsigned(blocks * call.tasks), kBufferThreads, 0, stream, table.parameter(), call, partial);
  GS_LAUNCH(finish_risk, unsigned(call.tasks), kWarp, 0, stream, blocks, partial, risk);
}

}  // namespace gradsurgery
