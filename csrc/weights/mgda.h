// MGDA (Desideri, "Multiple-gradient descent algorithm", Comptes Rendus Mathematique 2012; Sener & Koltun, "Multi-task learning
// as multi-objective optimization", NeurIPS 2018): the shortest vector in the convex hull of the g_i / gamma_i. With w_i gamma_i
// in the simplex, w = v / gamma^T v for the v >= 0 that minimises 1/2 v^T K v - gamma^T v; a ray of that problem is a convex
// combination that is zero.
//
// options: whether gamma_i contains |g_i|, whether zero gradients are left out
// given: the factor of gamma_i beside it (a loss), NaN for absent tasks; or null for ones
#pragma once

#include <math.h>

#include "active_set.h"

namespace gradsurgery {

struct MGDA {
  static constexpr const char* kName = "mgda";
  static constexpr int kOptions = 2;
  static constexpr int64_t state_size(int64_t) { return 0; }
  static constexpr int64_t room(int64_t tasks) { return reduced_room(tasks) + active_set_room(tasks); }

  template <class Lanes>
  GS_HOST_DEVICE static Report solve(const Problem& problem, Arena arena, Lanes lanes) {
    const int T = problem.tasks;
    const bool norms = problem.options[0] != 0.0, zeros_block = problem.options[1] == 0.0;
    Report report;
    int zeros = 0;
    bool positive = true;
    for (int t = 0; t < T; ++t) {
      const double factor = problem.given ? problem.given[t] : 1.0;
      const bool zero = !(problem.gram[int64_t(t) * T + t] > 0.0);
      if (zero && !isnan(factor)) ++zeros;
      if (!zero && !(factor > 0.0 && isfinite(factor))) positive = false;
    }
    if (!positive || (zeros > 0 && zeros_block)) {
      for (int t = lanes.begin(); t < T; t += lanes.step()) {
        const bool blocks = !(problem.gram[int64_t(t) * T + t] > 0.0) && !(problem.given && isnan(problem.given[t]));
        problem.w[t] = !positive ? nan("") : blocks ? 1.0 / zeros : 0.0;
      }
      report.converged = positive;
      report.stationary = positive;
      return report;
    }
    const Reduced reduced = reduce(problem, arena, lanes);
    const int n = reduced.size;
    ActiveSet set = active_set(reduced.gram, n, arena, lanes);
    for (int i = lanes.begin(); i < n; i += lanes.step()) {
      const double factor = problem.given ? problem.given[reduced.task[i]] : 1.0;
      set.linear[i] = factor * (norms ? sqrt(reduced.gram[int64_t(i) * n + i]) : 1.0 / reduced.scale[i]);
      set.noise[i] = set.linear[i];
    }
    clear(set, lanes);
    set.positive = true;
    const bool bounded = minimise(set, lanes);
    report.converged = set.converged;
    report.stationary = n > 0 && (!bounded || vanishes(set));
    report.iterations = set.iterations;
    const double sum = dot(set.linear, set.y, n);
    lanes.sync();
    for (int i = lanes.begin(); i < n; i += lanes.step()) set.y[i] /= sum;
    spread(problem, reduced, set.y, lanes);
    return report;
  }
};

}  // namespace gradsurgery
