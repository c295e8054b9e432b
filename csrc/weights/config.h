// ConFIG (Liu et al., "ConFIG: towards conflict-free training of physics informed neural networks", ICLR 2025): the direction
// that has the cosines `pref` (by default equal ones) with the tasks' gradients, x = sum_i (C^+ pref)_i g_i / |g_i|, at a length
// that is the sum of the gradients' projections on it, or some mean of their lengths.
//
// Where no direction has such cosines to any extent, C^+ pref = 0, so is w. Zero gradients get 0 and count in no mean.
//
// options: length (an enum below); given: pref, or null for ones
#pragma once

#include "cosines.h"

namespace gradsurgery {

enum class ConfigLength : int { projection, minimum, maximum, harmonic, arithmetic, geometric };

// Some mean of n positive lengths.
GS_HOST_DEVICE double mean_length(ConfigLength kind, const double* d, int n) {
  double least = INFINITY, most = 0.0, sum = 0.0, inverses = 0.0, logs = 0.0;
  for (int i = 0; i < n; ++i) {
    least = fmin(least, d[i]);
    most = fmax(most, d[i]);
    sum += d[i];
    inverses += 1.0 / d[i];
    logs += log(d[i]);
  }
  if (kind == ConfigLength::minimum) return least;
  if (kind == ConfigLength::maximum) return most;
  if (kind == ConfigLength::harmonic) return n / inverses;
  return kind == ConfigLength::arithmetic ? sum / n : exp(logs / n);
}

struct Config {
  static constexpr const char* kName = "config";
  static constexpr int kOptions = 1;
  static constexpr int64_t state_size(int64_t) { return 0; }
  static constexpr int64_t room(int64_t tasks) { return cosines_room(tasks) + 5 * tasks; }

  template <class Lanes>
  GS_HOST_DEVICE static Report solve(const Problem& problem, Arena arena, Lanes lanes) {
    const Cosines given = cosines(problem, arena, lanes);
    const Reduced& reduced = given.reduced;
    const ConfigLength kind = ConfigLength(int(problem.options[0]));
    const int n = reduced.size;
    double* const pref = arena.doubles(problem.tasks);
    double* const c = arena.doubles(problem.tasks);
    double* const y = arena.doubles(problem.tasks);
    double* const product = arena.doubles(problem.tasks);
    double* const length = arena.doubles(problem.tasks);  // |g_i|, over the largest d_i: nothing overflows
    double longest = 0.0;
    for (int i = 0; i < n; ++i) longest = fmax(longest, reduced.scale[i]);
    for (int i = lanes.begin(); i < n; i += lanes.step()) {
      pref[i] = problem.given ? problem.given[reduced.task[i]] : 1.0;
      length[i] = given.norm[i] * (reduced.scale[i] / longest);
    }
    lanes.sync();
    pseudo_solve(given, pref, c, y, lanes);
    for (int i = lanes.begin(); i < n; i += lanes.step()) y[i] /= given.norm[i];
    lanes.sync();
    multiply(reduced.gram, y, product, n, lanes);  // <g_i, x> / d_i
    const double square = dot(y, product, n);      // |x|^2
    double factor = 0.0;                           // from x to the result
    if (square > 0.0 && kind == ConfigLength::projection) {
      for (int i = 0; i < n; ++i) factor += reduced.scale[i] / longest * product[i];
      factor /= square;
    } else if (square > 0.0) {
      factor = mean_length(kind, length, n) / sqrt(square);
    }
    for (int i = lanes.begin(); i < n; i += lanes.step()) c[i] = factor * y[i] / (reduced.scale[i] / longest);
    scatter(problem, reduced, c, lanes);
    return report_of(given);
  }
};

}  // namespace gradsurgery
