// CAGrad (Liu et al., "Conflict-averse gradient descent for multi-task learning", NeurIPS 2021): the d that maximises
// mu = min_i <g_i, d> over |d - g_0| <= phi = c |g_0|, with g_0 = sum_i b_i g_i the mean.
//
// d = g_0 + sum_i u_i g_i, where u >= 0 minimises 1/2 u^T K u + (K b - mu 1)^T u: the least change that gives every task mu. Its
// length is convex and increasing in mu, and on one active set its square is a quadratic: the search for phi goes from root to
// root of such quadratics, from above, and ends where the active set stays.
//
// options: c, the factor of the result
// given: b [T], 0 for absent tasks; or null for 1/T
#pragma once

#include "active_set.h"

namespace gradsurgery {

struct CAGrad {
  static constexpr const char* kName = "cagrad";
  static constexpr int kOptions = 2;
  static constexpr int64_t state_size(int64_t) { return 0; }
  static constexpr int64_t room(int64_t tasks) { return reduced_room(tasks) + active_set_room(tasks) + 4 * tasks; }

  template <class Lanes>
  GS_HOST_DEVICE static Report solve(const Problem& problem, Arena arena, Lanes lanes) {
    const int T = problem.tasks;
    const double c = problem.options[0], factor = problem.options[1];
    const auto b = [&](int t) { return problem.given ? problem.given[t] : 1.0 / T; };
    const Reduced reduced = reduce(problem, arena, lanes);
    const int n = reduced.size;
    ActiveSet set = active_set(reduced.gram, n, arena, lanes);
    double* const mean = arena.doubles(n);      // D b
    double* const progress = arena.doubles(n);  // <g_i, g_0> / d_i
    double* const absolute = arena.doubles(n);  // what that was summed from
    double* const inverse = arena.doubles(n);   // 1 / d_i
    for (int i = lanes.begin(); i < n; i += lanes.step()) {
      mean[i] = reduced.scale[i] * b(reduced.task[i]);
      inverse[i] = 1.0 / reduced.scale[i];
    }
    lanes.sync();
    for (int i = lanes.begin(); i < n; i += lanes.step()) {
      double sum = 0.0, of_absolutes = 0.0;
      for (int j = 0; j < n; ++j) {
        const double product = reduced.gram[int64_t(i) * n + j] * mean[j];
        sum += product;
        of_absolutes += fabs(product);
      }
      progress[i] = sum;
      absolute[i] = of_absolutes;
    }
    clear(set, lanes);

    Report report;
    const double square = dot(mean, progress, n), phi = square > 0.0 ? c * sqrt(square) : 0.0;
    report.stationary = !(square > rounding_of(n) * dot(mean, absolute, n));  // g_0 itself is zero
    bool zero_row = false;
    for (int t = 0; t < T; ++t) zero_row = zero_row || (b(t) > 0.0 && !(problem.gram[int64_t(t) * T + t] > 0.0));
    bool found = !(phi > 0.0) || report.stationary != 0.0;
    for (bool again = !found; again; again = !(found && set.converged) && add_ridge(set, lanes)) {
      // Between no change and what the best-placed change gives the first task that it would not suffice: mu is in [low, high].
      double low = zero_row ? 0.0 : HUGE_VAL, high = low;
      for (int i = 0; i < n; ++i) {
        const double now = progress[i] * reduced.scale[i];
        const double most = now + phi * reduced.scale[i] * sqrt(reduced.gram[int64_t(i) * n + i]);
        if (now < low) low = now;
        if (most < high) high = most;
      }
      bool at_most_zero = zero_row && high == 0.0;  // some convex combination is zero, and no d gives every task more than 0
      double mu = high;
      found = false;
      for (int round = 0; !found && round < 4 * n + 80; ++round) {
        for (int i = lanes.begin(); i < n; i += lanes.step()) {
          set.linear[i] = mu * inverse[i] - progress[i];
          set.noise[i] = fabs(mu) * inverse[i] + absolute[i];
        }
        if (!minimise(set, lanes)) {
          clear(set, lanes);
          high = mu > 0.0 ? 0.0 : mu;
          at_most_zero = at_most_zero || mu > 0.0;
          mu = mu > 0.0 ? 0.0 : 0.5 * (low + high);
          continue;
        }
        double length = 0.0, natural = 0.0, sum = 0.0;  // u^T K u, |u|^T |K| |u|, 1^T u
        for (int i = 0; i < n; ++i) {
          length += set.y[i] * (set.slope[i] + set.linear[i]);
          natural += set.y[i] * (set.magnitude[i] - set.noise[i]);
          sum += set.y[i] * inverse[i];
        }
        lanes.sync();
        const double excess = length - phi * phi;
        const double tolerance = round < 2 * n + 40 ? rounding_of(n) : kEnough;
        const bool enough = fabs(excess) <= tolerance * (natural + phi * phi);
        // g_w = 0, exactly where a change shorter than phi already gives all that can be had, or to rounding: d = g_0.
        if (at_most_zero && mu == 0.0 && (enough || excess < 0.0)) report.stationary = 1.0;
        if (enough && length <= rounding_of(n) * natural) report.stationary = 1.0;
        found = enough || report.stationary != 0.0;
        if (found) {
          if (report.stationary != 0.0) clear(set, lanes);
          break;
        }
        if (excess > 0.0) {
          high = mu;
        } else {
          low = mu;
        }
        double curvature = 0.0;  // of u^T K u / 2 in mu, on this active set
        if (set.factored == set.size) {
          solve_active(set, inverse, lanes);
          for (int k = 0; k < set.size; ++k) curvature += set.step[k] * inverse[set.active[k]];
        }
        const double discriminant = sum * sum - curvature * excess;
        mu -= discriminant >= 0.0 ? excess / (sum + sqrt(discriminant)) : (length - phi * sqrt(length)) / sum;
        if (!(mu > low && mu < high)) {
          mu = 0.5 * (low + high);
          if (!(mu > low && mu < high)) found = true;
        }
      }
    }
    report.converged = found && set.converged;
    report.iterations = set.iterations;
    spread(problem, reduced, set.y, lanes);
    for (int t = lanes.begin(); t < T; t += lanes.step()) problem.w[t] = factor * (b(t) + problem.w[t]);
    return report;
  }
};

}  // namespace gradsurgery
