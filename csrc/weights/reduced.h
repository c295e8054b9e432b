// K without the rows of zero gradients, and scaled: what most solvers work on, so that neither the size of all gradients nor that
// of one of them matters.
#pragma once

#include "solver.h"

namespace gradsurgery {

struct Reduced {
  int size = 0;             // n tasks with a gradient that is not zero
  double* gram = nullptr;   // [n, n]: D^-1 K D^-1 without their rows, diagonal in [1, 4)
  double* scale = nullptr;  // [n]: D, powers of two, so that scaling rounds nothing: |g_i| / d_i is in [1, 2)
  int32_t* task = nullptr;  // [n]: which tasks they are, ascending
};

constexpr int64_t reduced_room(int64_t tasks) { return tasks * tasks + tasks + (tasks + 1) / 2; }

// The largest power of two whose square is at most a positive x.
GS_HOST_DEVICE double power_of_two_below_root(double x) {
  int exponent;
  frexp(x, &exponent);  // x in [2^(exponent - 1), 2^exponent)
  exponent -= 1;
  return ldexp(1.0, exponent >= 0 ? exponent / 2 : -((1 - exponent) / 2));
}

// Each lane sees its own rows of the matrix on return, and those of others after the next sync.
template <class Lanes>
GS_HOST_DEVICE Reduced reduce(const Problem& problem, Arena& arena, Lanes lanes) {
  const int T = problem.tasks;
  Reduced result;
  result.gram = arena.doubles(int64_t(T) * T);
  result.scale = arena.doubles(T);
  result.task = arena.ints(T);
  for (int t = 0; t < T; ++t) {
    const double square = problem.gram[int64_t(t) * T + t];
    if (!(square > 0.0)) continue;
    if (lanes.first()) {
      result.task[result.size] = t;
      result.scale[result.size] = power_of_two_below_root(square);
    }
    ++result.size;
  }
  lanes.sync();
  const int n = result.size;
  for (int i = lanes.begin(); i < n; i += lanes.step())
    for (int j = 0; j < n; ++j)
      result.gram[int64_t(i) * n + j] =
          problem.gram[int64_t(result.task[i]) * T + result.task[j]] / result.scale[i] / result.scale[j];
  return result;
}

// w of all tasks from those of the reduced ones, and 0 for zero gradients.
template <class Lanes>
GS_HOST_DEVICE void scatter(const Problem& problem, const Reduced& reduced, const double* v /* [n] */, Lanes lanes) {
  for (int t = lanes.begin(); t < problem.tasks; t += lanes.step()) problem.w[t] = 0.0;
  lanes.sync();
  for (int i = lanes.begin(); i < reduced.size; i += lanes.step()) problem.w[reduced.task[i]] = v[i];
}

// w of all tasks from v over the reduced ones: w_t = v_i / d_i, and 0 for zero gradients. Seen by all lanes on return.
template <class Lanes>
GS_HOST_DEVICE void spread(const Problem& problem, const Reduced& reduced, const double* v /* [n] */, Lanes lanes) {
  for (int t = lanes.begin(); t < problem.tasks; t += lanes.step()) problem.w[t] = 0.0;
  lanes.sync();
  for (int i = lanes.begin(); i < reduced.size; i += lanes.step()) problem.w[reduced.task[i]] = v[i] / reduced.scale[i];
  lanes.sync();
}

}  // namespace gradsurgery
