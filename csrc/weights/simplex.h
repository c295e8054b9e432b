// Projection onto the probability simplex {w >= 0, sum w = 1}, exact by sorting.
#pragma once

#include <math.h>

#include "solver.h"

namespace gradsurgery {

// w = argmin |w - v|^2 over the simplex, n >= 1; `sorted` is room [n], v is not w. Shifting all v alike changes nothing, so the
// largest is taken for zero, which keeps the sums small whatever the size of v. A v that is not finite has no nearest point:
// false, and w is not written.
template <class Lanes>
GS_HOST_DEVICE bool project_simplex(const double* v, double* w, double* sorted, int n, Lanes lanes) {
  bool finite = true;
  for (int i = 0; i < n; ++i) finite = finite && isfinite(v[i]);
  if (!finite) return false;
  for (int i = lanes.begin(); i < n; i += lanes.step()) {
    int before = 0;
    for (int j = 0; j < n; ++j) before += v[j] > v[i] || (v[j] == v[i] && j < i);
    sorted[before] = v[i];
  }
  lanes.sync();
  const double top = sorted[0];
  double sum = 0.0, threshold = 0.0;
  for (int k = 0; k < n; ++k) {  // the first k + 1 are positive in w exactly while the next threshold lies below them
    const double x = sorted[k] - top, next = (sum + x - 1.0) / (k + 1);
    if (x <= next) break;
    sum += x;
    threshold = next;
  }
  for (int i = lanes.begin(); i < n; i += lanes.step()) {
    const double x = v[i] - top - threshold;
    w[i] = x > 0.0 ? x : 0.0;
  }
  lanes.sync();
  return true;
}

// The tasks that are present: those whose number in `given` is not zero, all without it. Writes their places, ascending.
template <class Lanes>
GS_HOST_DEVICE int present_tasks(const Problem& problem, int32_t* task, Lanes lanes) {
  int count = 0;
  for (int t = 0; t < problem.tasks; ++t) {
    if (problem.given && problem.given[t] == 0.0) continue;
    if (lanes.first()) task[count] = t;
    ++count;
  }
  lanes.sync();
  return count;
}

// The weights that a solver remembers of the tasks present, brought onto their simplex: they leave it when a task goes, or comes
// later than others. 1/n without memory; false for a memory that is not finite. `room` [n] and `sorted` [n] are overwritten.
template <class Lanes>
GS_HOST_DEVICE bool recall(const Problem& problem, const int32_t* task, double* w, double* room, double* sorted, int n,
                           Lanes lanes) {
  double* const to = problem.state ? room : w;
  for (int i = lanes.begin(); i < n; i += lanes.step()) to[i] = problem.state ? problem.state[task[i]] : 1.0 / n;
  lanes.sync();
  return problem.state ? project_simplex(room, w, sorted, n, lanes) : true;
}

// The answer where the iteration left the numbers: w = NaN, and the memory stays as it is.
template <class Lanes>
GS_HOST_DEVICE Report overflowed(const Problem& problem, Report said, Lanes lanes) {
  for (int t = lanes.begin(); t < problem.tasks; t += lanes.step()) problem.w[t] = nan("");
  lanes.sync();
  said.converged = 0.0;
  return said;
}

}  // namespace gradsurgery
