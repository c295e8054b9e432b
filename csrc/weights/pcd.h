// PCD ("Not all objectives are born equal: priority-constrained descent for hierarchical multi-objective optimization", TMLR
// 2026): the d nearest to s_p g_p with <s_j g_j, d> >= tau_j |s_j g_j|^2 for every other task j, at the length of g_p; 1 / s_j^2
// = the bias-corrected moving average of |g_j|^2, plus eps. With d = s_p g_p + sum_j z_j g_j, z >= 0 minimises 1/2 z^T K z -
// sum_j (tau_j s_j K_jj - s_p K_jp) z_j; a ray says that no d satisfies all constraints, and they are dropped.
//
// options: tau where none is given, beta, eps, the primary task p
// given: tau [T], NaN for absent tasks, whose averages stay; or null
// state: [T, 2] the moving average, and how many steps are in it
#pragma once

#include <math.h>

#include "active_set.h"

namespace gradsurgery {

struct PCD {
  static constexpr const char* kName = "pcd";
  static constexpr int kOptions = 4;
  static constexpr int64_t state_size(int64_t tasks) { return 2 * tasks; }
  static constexpr int64_t room(int64_t tasks) { return reduced_room(tasks) + active_set_room(tasks) + tasks; }

  template <class Lanes>
  GS_HOST_DEVICE static Report solve(const Problem& problem, Arena arena, Lanes lanes) {
    const int T = problem.tasks, primary_task = int(problem.options[3]);
    const double beta = problem.options[1], eps = problem.options[2];
    double* const s = arena.doubles(T);
    for (int t = lanes.begin(); t < T; t += lanes.step()) {
      const double fresh = problem.gram[int64_t(t) * T + t];
      double average = fresh;  // the first step's, corrected for bias
      s[t] = 0.0;
      if (problem.given && isnan(problem.given[t])) continue;
      if (problem.state) {
        double* const memory = problem.state + 2 * int64_t(t);
        memory[0] = beta * memory[0] + (1.0 - beta) * fresh;
        memory[1] += 1.0;
        average = memory[0] / (1.0 - pow(beta, memory[1]));
      }
      if (average + eps > 0.0) s[t] = 1.0 / sqrt(average + eps);
    }
    const Reduced reduced = reduce(problem, arena, lanes);
    const int n = reduced.size;
    int primary = -1;
    for (int i = 0; i < n; ++i)
      if (reduced.task[i] == primary_task) primary = i;
    Report report;
    if (primary < 0) {
      for (int t = lanes.begin(); t < T; t += lanes.step()) problem.w[t] = 0.0;
      return report;
    }
    ActiveSet set = active_set(reduced.gram, n, arena, lanes);
    const double start = s[primary_task] * reduced.scale[primary];  // s_p g_p in units of the scaled g_p
    for (int i = lanes.begin(); i < n; i += lanes.step()) {
      const int t = reduced.task[i];
      const double tau = problem.given ? problem.given[t] : problem.options[0];
      const double wanted = tau * s[t] * reduced.scale[i] * reduced.gram[int64_t(i) * n + i];
      const double had = start * reduced.gram[int64_t(i) * n + primary];
      set.linear[i] = wanted - had;
      set.noise[i] = wanted + fabs(had);
      if (i == primary) set.mark[i] = kExcluded;
    }
    clear(set, lanes);
    if (!minimise(set, lanes)) {
      clear(set, lanes);
      report.stationary = 1.0;
    }
    report.converged = set.converged;
    report.iterations = set.iterations;
    if (lanes.first()) set.y[primary] = start;
    lanes.sync();
    double square = 0.0, absolute = 0.0;  // |d|^2, and what it is summed from
    for (int i = 0; i < n; ++i) {
      const double* const row = reduced.gram + int64_t(i) * n;
      for (int j = 0; j < n; ++j) {
        square += set.y[i] * row[j] * set.y[j];
        absolute += set.y[i] * fabs(row[j]) * set.y[j];
      }
    }
    const bool vanishes = !(square > rounding_of(n) * absolute);  // a convex combination, up to its length, that is zero
    if (vanishes) report.stationary = 1.0;
    const double length = problem.gram[int64_t(primary_task) * T + primary_task];
    const double factor = vanishes ? 0.0 : sqrt(length / square);
    lanes.sync();
    for (int i = lanes.begin(); i < n; i += lanes.step()) set.y[i] *= factor;
    spread(problem, reduced, set.y, lanes);
    return report;
  }
};

}  // namespace gradsurgery
