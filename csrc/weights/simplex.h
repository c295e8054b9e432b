// Projection onto the probability simplex {w >= 0, sum w = 1}, exact by sorting.
#pragma once

#include "solver.h"

namespace gradsurgery {

// w = argmin |w - v|^2 over the simplex, n >= 1; `sorted` is room [n], v is not w. Shifting all v alike changes nothing, so the
// largest is taken for zero, which keeps the sums small whatever the size of v.
template <class Lanes>
GS_HOST_DEVICE void project_simplex(const double* v, double* w, double* sorted, int n, Lanes lanes) {
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
  lanes.sync();
  for (int i = lanes.begin(); i < n; i += lanes.step()) {
    const double x = v[i] - top - threshold;
    w[i] = x > 0.0 ? x : 0.0;
  }
  lanes.sync();
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

// The weights that a solver remembers of the tasks present, brought onto their simplex where some are absent; 1/n without memory.
// `room` [n] and `sorted` [n] are overwritten.
template <class Lanes>
GS_HOST_DEVICE void recall(const Problem& problem, const int32_t* task, double* w, double* room, double* sorted, int n,
                           Lanes lanes) {
  double* const to = problem.state && problem.given ? room : w;
  for (int i = lanes.begin(); i < n; i += lanes.step()) to[i] = problem.state ? problem.state[task[i]] : 1.0 / n;
  lanes.sync();
  if (to == room) project_simplex(room, w, sorted, n, lanes);
}

}  // namespace gradsurgery
