// DualProj (Lopez-Paz & Ranzato, "Gradient episodic memory for continual learning", NeurIPS 2017, equation 11): the projection of
// sum_i p_i g_i on the dual cone.
//
// options, given: see dual_cone.h
#pragma once

#include "dual_cone.h"

namespace gradsurgery {

struct DualProj {
  static constexpr const char* kName = "dualproj";
  static constexpr int kOptions = 3;
  static constexpr int64_t state_size(int64_t) { return 0; }
  static constexpr int64_t room(int64_t tasks) { return reduced_room(tasks) + active_set_room(tasks) + tasks; }

  template <class Lanes>
  GS_HOST_DEVICE static Report solve(const Problem& problem, Arena arena, Lanes lanes) {
    const Reduced reduced = reduce(problem, arena, lanes);
    const int n = reduced.size;
    const bool project = regularise(problem, reduced, lanes);
    ActiveSet set = active_set(reduced.gram, n, arena, lanes);
    double* const u = arena.doubles(n);
    for (int i = lanes.begin(); i < n; i += lanes.step()) u[i] = reduced.scale[i] * preference(problem, reduced.task[i]);
    clear(set, lanes);
    Report report;
    if (project) report.stationary = project_on_dual_cone(set, u, lanes);
    spread_projection(problem, reduced, set.y, lanes);
    report.converged = set.converged;
    report.iterations = set.iterations;
    return report;
  }
};

}  // namespace gradsurgery
