// MoDo (Chen et al., "Three-way trade-off in multi-objective learning", NeurIPS 2023): one projected gradient step on a
// cross-Gram matrix A = J_1 J_2^T, which is not symmetric: w <- the simplex's nearest to w - gamma (A w + rho w).
//
// options: gamma, rho; given: 0 for an absent task; state [T]: w
#pragma once

#include "simplex.h"

namespace gradsurgery {

struct Modo {
  static constexpr const char* kName = "modo";
  static constexpr int kOptions = 2;
  static constexpr int64_t state_size(int64_t tasks) { return tasks; }
  static constexpr int64_t room(int64_t tasks) { return 3 * tasks + (tasks + 1) / 2; }

  template <class Lanes>
  GS_HOST_DEVICE static Report solve(const Problem& problem, Arena arena, Lanes lanes) {
    const int T = problem.tasks;
    const double gamma = problem.options[0], rho = problem.options[1];
    double* const w = arena.doubles(T);
    double* const moved = arena.doubles(T);
    double* const sorted = arena.doubles(T);
    int32_t* const task = arena.ints(T);
    const int n = present_tasks(problem, task, lanes);
    Report said;
    said.stationary = -1.0;
    if (!recall(problem, task, w, moved, sorted, n, lanes)) return overflowed(problem, said, lanes);
    said.iterations = 1.0;
    for (int i = lanes.begin(); i < n; i += lanes.step()) {
      double gradient = rho * w[i];
      for (int j = 0; j < n; ++j) gradient += problem.gram[int64_t(task[i]) * T + task[j]] * w[j];
      moved[i] = w[i] - gamma * gradient;
    }
    lanes.sync();
    if (!project_simplex(moved, w, sorted, n, lanes)) return overflowed(problem, said, lanes);
    for (int t = lanes.begin(); t < T; t += lanes.step()) problem.w[t] = 0.0;
    lanes.sync();
    for (int i = lanes.begin(); i < n; i += lanes.step()) {
      problem.w[task[i]] = w[i];
      if (problem.state) problem.state[task[i]] = w[i];
    }
    return said;
  }
};

}  // namespace gradsurgery
