#include "coordinatewise_cuda.cuh"

namespace gradsurgery {
namespace {

using GradDropKernel = void (*)(Table, const double*, const int64_t*, bool);
using SignAgreementKernel = void (*)(Table, double, bool, bool);
using MiddleKernel = void (*)(Table, int, bool);

// Fewer of them for float64, which is rare: absent rows cost less than the memory that the others wait for.
template <bool Leak, class Run>
constexpr GradDropKernel graddrop_kernel(int tasks) {
  if (tasks > 8) return graddrop_chunks<8, true, Leak, Run>;
  if constexpr (sizeof(Run) == 4) {
    if (tasks <= 2) return graddrop_chunks<2, false, Leak, Run>;
    if (tasks <= 4) return graddrop_chunks<4, false, Leak, Run>;
  }
  return graddrop_chunks<8, false, Leak, Run>;
}

template <class Run>
constexpr SignAgreementKernel sign_agreement_kernel(int tasks) {
  if (tasks > 8) return sign_agreement_chunks<8, true, Run>;
  if constexpr (sizeof(Run) == 4) {
    if (tasks <= 2) return sign_agreement_chunks<2, false, Run>;
    if (tasks <= 4) return sign_agreement_chunks<4, false, Run>;
  }
  return sign_agreement_chunks<8, false, Run>;
}

constexpr MiddleKernel kSorted[] = {sorted_chunks<2, float>, sorted_chunks<2, float>, sorted_chunks<3, float>,
                                    sorted_chunks<4, float>, sorted_chunks<5, float>, sorted_chunks<6, float>,
                                    sorted_chunks<7, float>, sorted_chunks<8, float>};

MiddleKernel middle_kernel(int tasks, bool float64) {
  if (float64) return tasks <= 8 ? sorted_chunks<8, double> : ranked_chunks<double>;
  if (tasks > kSortedRows) return ranked_chunks<float>;
  return tasks <= 8 ? kSorted[tasks - 1] : sorted_chunks<kSortedRows, float>;
}

}  // namespace

void coordinatewise_cuda(const RowTable& table, const Rule& rule, const double* uniform, int64_t* key, bool accumulate,
                         void* stream) {
  const int tasks = table.tasks(), blocks = table.chunks();
  const bool float64 = table.any_float64();
  if (blocks > 0) {
    switch (rule.kind) {
      case RuleKind::graddrop: {
        const bool leaks = !rule.leak.empty();
        const GradDropKernel kernel = float64 ? (leaks ? graddrop_kernel<true, double> : graddrop_kernel<false, double>)(tasks)
                                              : (leaks ? graddrop_kernel<true, float> : graddrop_kernel<false, float>)(tasks);
        GS_LAUNCH(kernel, blocks, kCoordinatewiseThreads, 0, stream, table.parameter(), uniform, key, accumulate);
        break;
      }
      case RuleKind::sign_agreement: {
        const SignAgreementKernel kernel = float64 ? sign_agreement_kernel<double>(tasks) : sign_agreement_kernel<float>(tasks);
        GS_LAUNCH(kernel, blocks, kCoordinatewiseThreads, 0, stream, table.parameter(), rule.threshold, rule.mean, accumulate);
        break;
      }
      case RuleKind::trimmed_mean:
      case RuleKind::median: {
        const int trim = rule.kind == RuleKind::median ? -1 : rule.trim;
        GS_LAUNCH(middle_kernel(tasks, float64), blocks, kCoordinatewiseThreads, 0, stream, table.parameter(), trim, accumulate);
        break;
      }
    }
  }
  if (rule.draws() && !uniform) GS_LAUNCH(advance_step, 1, 1, 0, stream, key);
}

}  // namespace gradsurgery
