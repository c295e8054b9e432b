// Multi-Krum in Gram space (Blanchard et al., "Machine learning with adversaries: Byzantine tolerant gradient descent", NeurIPS
// 2017): the score of a task is the sum of its squared distances to its T - f - 2 nearest others, |g_i - g_j|^2 = K_ii + K_jj -
// 2 K_ij; the m tasks of the smallest score are averaged. Ties go to the lower task. T counts the tasks that take part; the
// others are nobody's neighbours, and weigh nothing.
//
// options: f (tasks that may be corrupt), m (tasks to keep); given: 1 for tasks that take part and 0 for those that do not, or
// null for all
#pragma once

#include "solver.h"

namespace gradsurgery {

struct Krum {
  static constexpr const char* kName = "krum";
  static constexpr int kOptions = 2;
  static constexpr int64_t state_size(int64_t) { return 0; }
  static constexpr int64_t room(int64_t tasks) { return tasks * tasks + tasks; }

  template <class Lanes>
  GS_HOST_DEVICE static Report solve(const Problem& problem, Arena arena, Lanes lanes) {
    const int T = problem.tasks;
    const auto takes_part = [&](int t) { return !problem.given || problem.given[t] != 0.0; };
    int present = 0;
    for (int t = 0; t < T; ++t) present += takes_part(t);
    const auto count_of = [&](double option) {  // the number itself may be no int
      return !(option > 0) ? 0 : option < present ? int(option) : present;
    };
    const int neighbours = present - 2 - count_of(problem.options[0]), kept = count_of(problem.options[1]);
    double* const distances = arena.doubles(int64_t(T) * T);
    double* const scores = arena.doubles(T);
    const auto K = [&](int i, int j) { return problem.gram[int64_t(i) * T + j]; };
    for (int i = lanes.begin(); i < T; i += lanes.step()) {
      double* const row = distances + int64_t(i) * T;
      int count = 0;
      for (int j = 0; j < T; ++j) {  // insertion: the others' distances, ascending
        if (j == i || !takes_part(j)) continue;
        const double distance = K(i, i) + K(j, j) - 2.0 * K(i, j);
        int at = count++;
        for (; at > 0 && row[at - 1] > distance; --at) row[at] = row[at - 1];
        row[at] = distance;
      }
      double score = 0.0;
      for (int k = 0; k < neighbours; ++k) score += row[k];
      scores[i] = score;
    }
    lanes.sync();
    for (int i = lanes.begin(); i < T; i += lanes.step()) {
      int better = 0;
      for (int j = 0; j < T; ++j) better += takes_part(j) && (scores[j] < scores[i] || (scores[j] == scores[i] && j < i));
      problem.w[i] = takes_part(i) && better < kept ? 1.0 / kept : 0.0;
    }
    Report report;
    report.stationary = -1.0;
    return report;
  }
};

}  // namespace gradsurgery
