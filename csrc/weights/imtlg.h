// IMTL-G (Liu et al., "Towards impartial multi-task learning", ICLR 2021): weights that sum to 1 under which the combination has
// the same projection on every task's unit gradient: C (w |g|) = constant, so w = v / 1^T v with v_i = (C^+ 1)_i / |g_i|.
//
// Where 1^T v is zero to rounding there is no such combination, and w = 0. Zero gradients get 0. options: none
#pragma once

#include "cosines.h"

namespace gradsurgery {

struct ImtlG {
  static constexpr const char* kName = "imtlg";
  static constexpr int kOptions = 0;
  static constexpr int64_t state_size(int64_t) { return 0; }
  static constexpr int64_t room(int64_t tasks) { return cosines_room(tasks) + 3 * tasks; }

  template <class Lanes>
  GS_HOST_DEVICE static Report solve(const Problem& problem, Arena arena, Lanes lanes) {
    const Cosines given = cosines(problem, arena, lanes);
    const Spectrum& spectrum = given.spectrum;
    const int n = given.reduced.size;
    double* const ones = arena.doubles(problem.tasks);
    double* const c = arena.doubles(problem.tasks);
    double* const v = arena.doubles(problem.tasks);
    for (int i = lanes.begin(); i < n; i += lanes.step()) ones[i] = 1.0;
    lanes.sync();
    pseudo_solve(given, ones, c, v, lanes);
    double shortest = INFINITY;  // so that no 1 / |g_i| overflows
    for (int i = 0; i < n; ++i) shortest = fmin(shortest, given.reduced.scale[i]);
    for (int i = lanes.begin(); i < n; i += lanes.step()) {
      const double per_length = shortest / given.reduced.scale[i] / given.norm[i];
      double error = 0.0;  // of v_i, in units of rounding: an eigenvalue near 1 is wrong by one of them
      for (int k = 0; k < given.rank; ++k) error += fabs(c[k] * spectrum.vector(k)[i]) * (1.0 + 1.0 / spectrum.values[k]);
      ones[i] = error * per_length;
      v[i] *= per_length;
    }
    lanes.sync();
    const double sum = sum_of(v, n);
    const bool none = fabs(sum) <= fmax(0x1p-50, given.error) * sum_of(ones, n);
    for (int i = lanes.begin(); i < n; i += lanes.step()) c[i] = none ? 0.0 : v[i] / sum;
    scatter(problem, given.reduced, c, lanes);
    return report_of(given);
  }
};

}  // namespace gradsurgery
