// UPGrad (Quinton & Rey, "Jacobian descent for multi-objective optimization", 2024): the sum of the projections of p_i g_i on the
// dual cone. The projection of p_i g_i is p_i times that of g_i.
//
// options, given: see dual_cone.h
#pragma once

#include "dual_cone.h"

namespace gradsurgery {

struct UPGrad {
  static constexpr const char* kName = "upgrad";
  static constexpr int kOptions = 3;
  static constexpr int64_t state_size(int64_t) { return 0; }
  static constexpr int64_t room(int64_t tasks) { return reduced_room(tasks) + active_set_room(tasks) + 2 * tasks; }

  template <class Lanes>
  GS_HOST_DEVICE static Report solve(const Problem& problem, Arena arena, Lanes lanes) {
    const Reduced reduced = reduce(problem, arena, lanes);
    const int n = reduced.size;
    const bool project = regularise(problem, reduced, lanes);
    ActiveSet set = active_set(reduced.gram, n, arena, lanes);
    double* const unit = arena.doubles(n);
    double* const sum = arena.doubles(n);
    for (int j = lanes.begin(); j < n; j += lanes.step()) sum[j] = 0.0;
    Report report;
    for (int i = 0; project && i < n; ++i) {
      const double share = preference(problem, reduced.task[i]) * reduced.scale[i];
      if (share == 0.0) continue;
      for (int j = lanes.begin(); j < n; j += lanes.step()) unit[j] = j == i;
      lanes.sync();
      if (project_on_dual_cone(set, unit, lanes)) report.stationary = 1.0;
      for (int j = lanes.begin(); j < n; j += lanes.step()) sum[j] += share * set.y[j];
      lanes.sync();
      if (!set.converged) report.converged = 0.0;
    }
    report.iterations = set.iterations;
    spread_projection(problem, reduced, sum, lanes);
    return report;
  }
};

}  // namespace gradsurgery
