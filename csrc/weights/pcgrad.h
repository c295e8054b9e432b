// PCGrad in Gram space (Yu et al., "Gradient surgery for multi-task learning", NeurIPS 2020, Algorithm 1): T scans of at most
// T steps over K instead of T^2 passes over the gradients. One text for the CPU and for CUDA.
//
// Task i starts at c = e_i, r = K[i, :], where r_j = <g_i^PC, g_j>. For j in its order: if r_j < 0 and K_jj > 0, then
// a = -r_j / K_jj, c_j += a, r += a K[j, :]. The weights are w = scale * sum_i c_i. Projections are against the original g_j.
#pragma once

#include <cstdint>

#include "../common/macros.h"
#include "philox.h"
#include "solver.h"

namespace gradsurgery {

enum class OrderKind : int { ascending, given, random };

struct PcgradOptions {
  OrderKind kind = OrderKind::ascending;
  bool include_self = false;  // also project g_i^PC on g_i, as several public implementations do
  double scale = 1.0;         // 1 for the paper's sum, 1/T for the mean
  uint32_t group = 0;         // parameter group: groups draw independent orders in one step
};

// A uniformly random order of all T tasks for one task (Fisher-Yates); every task draws its own, as in the paper.
GS_HOST_DEVICE void pcgrad_random_order(int64_t seed, int64_t step, uint32_t group, int task, int tasks,
                                        int32_t* order /* [T] */) {
  Philox random(seed, step, group, uint32_t(task));
  for (int k = 0; k < tasks; ++k) order[k] = k;
  for (int k = tasks - 1; k > 0; --k) {
    const int other = int(random.below(uint32_t(k + 1)));
    const int32_t held = order[k];
    order[k] = order[other];
    order[other] = held;
  }
}

// Coefficients c of g_i^PC = sum_j c_j g_j. `order` may be null: ascending. Returns false for an order outside 0..T-1.
template <class Lanes>
GS_HOST_DEVICE bool pcgrad_row(const double* gram /* [T, T] */, int tasks, int i, const int32_t* order /* [T] */,
                               bool include_self, double* dots /* [T] */, double* c /* [T] */, Lanes lanes) {
  for (int m = lanes.begin(); m < tasks; m += lanes.step()) {
    dots[m] = gram[i * tasks + m];
    c[m] = m == i ? 1.0 : 0.0;
  }
  lanes.sync();
  for (int k = 0; k < tasks; ++k) {
    const int j = order ? order[k] : k;
    if (j < 0 || j >= tasks) return false;
    if (j == i && !include_self) continue;
    const double dot = dots[j], square = gram[j * tasks + j];
    lanes.sync();  // every lane has read dots[j] before one of them changes it
    if (dot < 0.0 && square > 0.0) {
      const double a = -dot / square;
      for (int m = lanes.begin(); m < tasks; m += lanes.step()) {
        dots[m] += a * gram[j * tasks + m];
        if (m == j) c[m] += a;
      }
    }
    lanes.sync();
  }
  return true;
}

}  // namespace gradsurgery
