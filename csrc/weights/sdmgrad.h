// SDMGrad (Xiao et al., "Direction-oriented multi-objective learning", NeurIPS 2023): projected gradient descent with momentum on
// a cross-Gram matrix A = J_1 J_2^T, which is not symmetric: v <- m v + A (w + lambda / n) / s^2, w <- the simplex's nearest to
// w - lr v, with s the mean of sqrt(max(A_tt, 0)). The answer is (w + lambda / n) / (1 + lambda).
//
// options: lr, m, iterations, lambda; given: 0 for an absent task; state [T]: w
#pragma once

#include "simplex.h"

namespace gradsurgery {

struct Sdmgrad {
  static constexpr const char* kName = "sdmgrad";
  static constexpr int kOptions = 4;
  static constexpr int64_t state_size(int64_t tasks) { return tasks; }
  static constexpr int64_t room(int64_t tasks) { return tasks * tasks + 4 * tasks + (tasks + 1) / 2; }

  template <class Lanes>
  GS_HOST_DEVICE static Report solve(const Problem& problem, Arena arena, Lanes lanes) {
    const int T = problem.tasks, iterations = int(problem.options[2]);
    const double lr = problem.options[0], momentum = problem.options[1], lambda = problem.options[3];
    double* const a = arena.doubles(int64_t(T) * T);
    double* const w = arena.doubles(T);
    double* const velocity = arena.doubles(T);
    double* const moved = arena.doubles(T);
    double* const sorted = arena.doubles(T);
    int32_t* const task = arena.ints(T);
    const int n = present_tasks(problem, task, lanes);
    Report said;
    if (!recall(problem, task, w, moved, sorted, n, lanes)) return overflowed(problem, said, lanes);
    const auto A = [&](int i, int j) { return problem.gram[int64_t(task[i]) * T + task[j]]; };
    double scale = 0.0;
    for (int i = 0; i < n; ++i) scale += A(i, i) > 0.0 ? sqrt(A(i, i)) : 0.0;
    scale /= n;
    said.converged = scale > 0.0;
    said.stationary = -1.0;
    for (int i = lanes.begin(); i < n; i += lanes.step()) {
      for (int j = 0; j < n; ++j) a[int64_t(i) * n + j] = scale > 0.0 ? A(i, j) / scale / scale : 0.0;
      velocity[i] = 0.0;
    }
    for (int k = 0; k < iterations && scale > 0.0; ++k) {
      for (int i = lanes.begin(); i < n; i += lanes.step()) {
        double gradient = 0.0;
        for (int j = 0; j < n; ++j) gradient += a[int64_t(i) * n + j] * (w[j] + lambda / n);
        velocity[i] = momentum * velocity[i] + gradient;
        moved[i] = w[i] - lr * velocity[i];
      }
      lanes.sync();
      said.iterations += 1.0;
      if (!project_simplex(moved, w, sorted, n, lanes)) return overflowed(problem, said, lanes);
    }
    for (int t = lanes.begin(); t < T; t += lanes.step()) problem.w[t] = 0.0;
    lanes.sync();
    for (int i = lanes.begin(); i < n; i += lanes.step()) {
      problem.w[task[i]] = (w[i] + lambda / n) / (1.0 + lambda);
      if (problem.state) problem.state[task[i]] = w[i];
    }
    return said;
  }
};

}  // namespace gradsurgery
