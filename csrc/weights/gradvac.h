// GradVac in Gram space (Wang et al., "Gradient vaccine", ICLR 2021): PCGrad's scan towards remembered cosines instead of 0.
//
// Task i starts at c = e_i, r = K[i, :], n^2 = K_ii, where r_j = <g_i^V, g_j> and n = |g_i^V|. For j in its order, where K_jj >
// 0: phi = r_j / (n d_j), d_j = |g_j|. If phi < phi_ij, then with a = (phi_ij sqrt(n^2 - r_j^2 / K_jj) / sqrt(1 - phi_ij^2)) /
// d_j
// - r_j / K_jj: c_j += a, n^2 += 2 a r_j + a^2 K_jj, r += a K[j, :], which makes the cosine phi_ij. In either case
// phi_ij <- (1 - beta) phi_ij + beta phi with phi from before. w = sum_i c_i. With all phi_ij = 0 this is PCGrad to the bit.
//
// Pairs with a zero gradient, and a g_i^V that vanished, have no cosine and leave phi_ij as it is. phi_ij = 1 is out of reach of
// any finite a, and taken for the nearest cosine below it. An order outside 0..T-1 gives w = NaN and leaves phi as it is.
//
// options: beta; state: phi [T, T], or none for phi = 0; order or key, or neither: ascending
#pragma once

#include "pcgrad.h"
#include "solver.h"

namespace gradsurgery {

struct GradVac {
  static constexpr const char* kName = "gradvac";
  static constexpr int kOptions = 1;
  static constexpr int64_t state_size(int64_t tasks) { return tasks * tasks; }
  static constexpr int64_t room(int64_t tasks) { return 2 * tasks + (tasks + 1) / 2; }

  template <class Lanes>
  GS_HOST_DEVICE static Report solve(const Problem& problem, Arena arena, Lanes lanes) {
    const int T = problem.tasks;
    double* const dots = arena.doubles(T);
    double* const c = arena.doubles(T);
    int32_t* const drawn = arena.ints(T);
    for (int t = lanes.begin(); t < T; t += lanes.step()) problem.w[t] = 0.0;
    Report report;
    report.stationary = -1.0;
    if (problem.order && !within(problem.order, T)) {
      for (int t = lanes.begin(); t < T; t += lanes.step()) problem.w[t] = nan("");
      report.converged = 0.0;
      return report;
    }
    for (int i = 0; i < T; ++i) {
      lanes.sync();  // every lane is done with the last task's order
      if (problem.key && lanes.first()) pcgrad_random_order(problem.key[0], problem.key[1], problem.group, i, T, drawn);
      row(problem, i, drawn, dots, c, lanes);
      for (int t = lanes.begin(); t < T; t += lanes.step()) problem.w[t] += c[t];
    }
    return report;
  }

 private:
  // Every lane looks at all of it, so that all return.
  GS_HOST_DEVICE static bool within(const int64_t* order, int T) {
    for (int64_t k = 0; k < int64_t(T) * T; ++k)
      if (order[k] < 0 || order[k] >= T) return false;
    return true;
  }

  template <class Lanes>
  GS_HOST_DEVICE static void row(const Problem& problem, int i, const int32_t* drawn, double* dots, double* c, Lanes lanes) {
    const int T = problem.tasks;
    const double* const gram = problem.gram;
    const double beta = problem.options[0];
    for (int m = lanes.begin(); m < T; m += lanes.step()) {
      dots[m] = gram[int64_t(i) * T + m];
      c[m] = m == i ? 1.0 : 0.0;
    }
    lanes.sync();
    double square = gram[int64_t(i) * T + i];  // n^2, which every lane follows
    for (int k = 0; k < T; ++k) {
      const int j = problem.order ? int(problem.order[int64_t(i) * T + k]) : problem.key ? drawn[k] : k;
      const double other = gram[int64_t(j) * T + j];
      if (j == i || !(other > 0.0)) continue;
      double* const phi = problem.state ? problem.state + int64_t(i) * T + j : nullptr;
      const double target = phi ? *phi : 0.0, dot = dots[j];
      lanes.sync();  // every lane has read what one of them will change
      const double lengths = sqrt(square) * sqrt(other);
      if (phi && square > 0.0 && lanes.first()) {
        const double cosine = fmin(fmax(dot / lengths, -1.0), 1.0);
        *phi = (1.0 - beta) * target + beta * cosine;
      }
      if (dot < target * lengths) {
        const double share = dot / other;
        const double across = fmax(square - share * dot, 0.0);  // of g_i^V, squared, at a right angle to g_j
        const double sine = fmax((1.0 - target) * (1.0 + target), 0x1p-52);
        const double a = target * sqrt(across / sine / other) - share;
        square = fmax(square + 2.0 * a * dot + a * (a * other), 0.0);
        for (int m = lanes.begin(); m < T; m += lanes.step()) {
          dots[m] += a * gram[int64_t(j) * T + m];
          if (m == j) c[m] += a;
        }
      }
      lanes.sync();
    }
  }
};

}  // namespace gradsurgery
