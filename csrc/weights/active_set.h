// min 1/2 y^T C y - b^T y over y >= 0, for C positive semidefinite with a diagonal of order one: the finite algorithm behind
// MGDA, UPGrad, DualProj, PCD and CAGrad.
//
// The active set S holds the tasks with y > 0, and L L^T = C_SS. The task whose slope (C y - b)_i is most negative enters; y goes
// to the minimum over S, and whenever a y reaches zero on the way, that task leaves (Lawson & Hanson, "Solving least squares
// problems", 1974). A task that to rounding is a combination of S gives no new minimum but a direction d with C d = 0 along which
// the objective falls for ever: either some y reaches zero and its task is exchanged, or nothing stops y, and d >= 0 is the
// answer: a ray, sum_i d_i g_i = 0. Every tolerance is a multiple of the rounding errors of what is compared; none is absolute.
#pragma once

#include "dense.h"
#include "reduced.h"

namespace gradsurgery {

enum TaskMark : int32_t {
  kFree,
  kActive,
  kBarred,    // was entered in vain: the slope is rounding error
  kExcluded,  // never enters
};

struct ActiveSet {
  int n = 0;
  double* gram = nullptr;        // C [n, n], ridge included
  double* linear = nullptr;      // b [n]
  double* noise = nullptr;       // [n] the sum of absolute values that b was computed from
  double* y = nullptr;           // [n] the answer: the minimum, or the ray
  double* slope = nullptr;       // [n] C y - b
  double* magnitude = nullptr;   // [n] |C| y + noise: the slope's rounding error is a few units of it
  double* factor = nullptr;      // L [n, n] of the active tasks, in their order
  double* step = nullptr;        // [n] in that order
  double* correction = nullptr;  // [n] in that order
  double* kept = nullptr;        // [n] y before a task entered
  int32_t* active = nullptr;     // [n] S in order of entrance
  int32_t* mark = nullptr;       // [n] TaskMark
  bool rays = true;              // whether the objective may fall for ever
  bool positive = false;         // whether b > 0, so that it falls along every ray
  int size = 0;                  // of S
  int factored = 0;              // leading rows of L that hold
  int iterations = 0;            // systems solved so far
  int patience = 0;              // from this iteration on no task enters twice, whatever rounding does
  double bend = 0.0;             // the most negative d^T C d found, over sum_i C_ii d_i^2: C is in error by as much
  double ridge = 0.0;            // what has been added to C's diagonal, over that
  bool converged = true;         // no slope at the end is more negative than rounding explains
};

constexpr int64_t active_set_room(int64_t tasks) { return tasks * tasks + 8 * tasks + 2 * ((tasks + 1) / 2); }

constexpr double kEnough = 0x1p-33;  // of a slope's magnitude: what may be left of it where rounding stops the search

constexpr double kMostRidge = 0x1p-10;  // a C that needs more is no Gram matrix

// A few units in the last place of sums over n tasks.
GS_HOST_DEVICE double rounding_of(int n) { return 4.0 * (n + 2) * 0x1p-52; }

// The empty set for C [n, n], once it is cleared; b and its noise are the caller's to fill.
template <class Lanes>
GS_HOST_DEVICE ActiveSet active_set(double* gram, int n, Arena& arena, Lanes lanes) {
  ActiveSet set;
  set.n = n;
  set.gram = gram;
  set.factor = arena.doubles(int64_t(n) * n);
  set.linear = arena.doubles(n);
  set.noise = arena.doubles(n);
  set.y = arena.doubles(n);
  set.slope = arena.doubles(n);
  set.magnitude = arena.doubles(n);
  set.step = arena.doubles(n);
  set.correction = arena.doubles(n);
  set.kept = arena.doubles(n);
  set.active = arena.ints(n);
  set.mark = arena.ints(n);
  for (int i = lanes.begin(); i < n; i += lanes.step()) set.mark[i] = kFree;
  return set;
}

// y = 0, and no task is active or barred.
template <class Lanes>
GS_HOST_DEVICE void clear(ActiveSet& set, Lanes lanes) {
  for (int i = lanes.begin(); i < set.n; i += lanes.step()) {
    set.y[i] = 0.0;
    if (set.mark[i] != kExcluded) set.mark[i] = kFree;
  }
  lanes.sync();
  set.size = set.factored = 0;
}

// What of C_ii is ridge.
GS_HOST_DEVICE double ridge_of(const ActiveSet& set, int i) {
  return set.ridge / (1.0 + set.ridge) * set.gram[int64_t(i) * set.n + i];
}

template <class Lanes>
GS_HOST_DEVICE void find_slopes(ActiveSet& set, Lanes lanes) {
  for (int i = lanes.begin(); i < set.n; i += lanes.step()) {
    const double* const row = set.gram + int64_t(i) * set.n;
    double sum = 0.0, absolute = 0.0;
    for (int k = 0; k < set.size; ++k) {
      const int j = set.active[k];
      const double product = row[j] * set.y[j];
      sum += product;
      absolute += fabs(product);
    }
    set.slope[i] = sum - set.linear[i];
    set.magnitude[i] = absolute + set.noise[i];
  }
  lanes.sync();
}

// step = C_SS^-1 `right`_S in the order of S, refined once, which makes it exact for a C that differs by rounding of its
// elements. Needs L whole.
template <class Lanes>
GS_HOST_DEVICE void solve_active(ActiveSet& set, const double* right /* [n] */, Lanes lanes) {
  for (int k = lanes.begin(); k < set.size; k += lanes.step()) set.step[k] = right[set.active[k]];
  lanes.sync();
  cholesky_solve(set.factor, set.size, set.n, set.step, lanes);
  for (int k = lanes.begin(); k < set.size; k += lanes.step()) {
    const double* const row = set.gram + int64_t(set.active[k]) * set.n;
    double rest = right[set.active[k]];
    for (int m = 0; m < set.size; ++m) rest -= row[set.active[m]] * set.step[m];
    set.correction[k] = rest;
  }
  lanes.sync();
  cholesky_solve(set.factor, set.size, set.n, set.correction, lanes);
  for (int k = lanes.begin(); k < set.size; k += lanes.step()) set.step[k] += set.correction[k];
  lanes.sync();
}

// Whether nothing stops y along step = d with C d = 0, but for parts of d that are rounding errors: without them, d^T C d is
// still zero as far as C can tell.
GS_HOST_DEVICE bool is_ray(const ActiveSet& set, int last) {
  double square = 0.0, absolute = 0.0;
  bool stops = false;
  for (int k = 0; k <= last; ++k) {
    stops = stops || set.step[k] < 0.0;
    if (!(set.step[k] > 0.0)) continue;
    const double* const row = set.gram + int64_t(set.active[k]) * set.n;
    for (int m = 0; m <= last; ++m) {
      if (!(set.step[m] > 0.0)) continue;
      const double product = set.step[k] * row[set.active[m]] * set.step[m];
      square += product;
      absolute += fabs(product);
    }
  }
  return !stops || square <= rounding_of(set.n) * absolute;
}

// step = d over the first `last` + 1 active tasks with d_last = 1 and C d = 0 but for row `last`, if that depends on the others.
// Needs the first `last` rows of L.
template <class Lanes>
GS_HOST_DEVICE void find_dependence(ActiveSet& set, int last, Lanes lanes) {
  const double* const row = set.gram + int64_t(set.active[last]) * set.n;
  for (int k = lanes.begin(); k <= last; k += lanes.step()) set.step[k] = k < last ? -row[set.active[k]] : 1.0;
  lanes.sync();
  cholesky_solve(set.factor, last, set.n, set.step, lanes);
}

// d^T C d over sum_i C_ii d_i^2 for step = d.
GS_HOST_DEVICE double bend_along(const ActiveSet& set, int last) {
  const double* const row = set.gram + int64_t(set.active[last]) * set.n;
  double square = 0.0, size = 0.0;
  for (int k = 0; k <= last; ++k) {
    square += row[set.active[k]] * set.step[k];  // all of C d but this is zero, and d_last = 1
    size += set.gram[int64_t(set.active[k]) * set.n + set.active[k]] * set.step[k] * set.step[k];
  }
  return square / size;
}

// Whether the objective falls along step = d with C d = 0, by more than rounding errors.
template <class Lanes>
GS_HOST_DEVICE bool falls(ActiveSet& set, int last, Lanes lanes) {
  find_slopes(set, lanes);
  double fall = 0.0, noise = 0.0;
  for (int k = 0; k <= last; ++k) {
    fall -= set.step[k] * set.slope[set.active[k]];
    noise += fabs(set.step[k]) * set.magnitude[set.active[k]];
  }
  return fall > rounding_of(set.n) * noise;
}

template <class Lanes>
GS_HOST_DEVICE void leave(ActiveSet& set, int position, TaskMark mark, Lanes lanes) {
  lanes.sync();  // every lane knows who leaves
  if (lanes.first()) {
    set.y[set.active[position]] = 0.0;
    set.mark[set.active[position]] = mark;
    for (int k = position + 1; k < set.size; ++k) set.active[k - 1] = set.active[k];
  }
  lanes.sync();
  --set.size;
  if (set.factored > position) set.factored = position;
}

// L for the active tasks. Returns their number, or the position of one that is to rounding a combination of those before it.
template <class Lanes>
GS_HOST_DEVICE int factorise(ActiveSet& set, Lanes lanes) {
  for (int i = set.factored + lanes.begin(); i < set.size; i += lanes.step())
    for (int j = 0; j <= i; ++j) set.factor[int64_t(i) * set.n + j] = set.gram[int64_t(set.active[i]) * set.n + set.active[j]];
  lanes.sync();
  const int before = set.factored;
  set.factored = cholesky(set.factor, set.size, set.n, rounding_of(set.n), lanes, before);
  if (set.factored < set.size || before == set.size) return set.factored;
  // The pivot of the task that joined last is d^T C d, with rounding errors that for a large d are those of large numbers.
  const int last = set.size - 1;
  const double root = set.factor[int64_t(last) * set.n + last];
  if (root > 0x1p-6) return set.size;
  find_dependence(set, last, lanes);
  double size = 0.0;
  for (int k = 0; k <= last; ++k) size += set.step[k] * set.step[k] * set.gram[int64_t(set.active[k]) * set.n + set.active[k]];
  if (root * root <= rounding_of(set.n) * size) set.factored = last;
  lanes.sync();  // every lane has read step
  return set.factored;
}

enum class Descent { minimum, refused, ray };

// From y to the minimum over the active tasks, of which those that would turn negative leave. `entering` is the task that joined
// last, with y = 0, or -1; refused: it has left again. A ray stands in y.
template <class Lanes>
GS_HOST_DEVICE Descent descend(ActiveSet& set, int entering, Lanes lanes) {
  Descent result = Descent::minimum;
  while (set.size > 0) {
    ++set.iterations;
    const int independent = factorise(set, lanes);
    const bool bounded = independent == set.size;
    const int last = bounded ? set.size - 1 : independent;
    double sign = 1.0;
    bool ray = false;
    if (bounded) {
      solve_active(set, set.linear, lanes);
      for (int k = lanes.begin(); k < set.size; k += lanes.step()) set.step[k] -= set.y[set.active[k]];
      lanes.sync();
    } else {
      find_dependence(set, last, lanes);
      set.bend = fmin(set.bend, bend_along(set, last) - set.ridge);
      ray = is_ray(set, last);
      const bool fall = falls(set, last, lanes) || (ray && set.positive), joins = set.active[last] == entering;
      if (ray ? !(fall && set.rays) : !(fall || joins)) {
        sign = -1.0;  // out with the last
        ray = false;
      }
    }
    if (ray) {
      for (int i = lanes.begin(); i < set.n; i += lanes.step()) set.y[i] = 0.0;
      lanes.sync();
      for (int k = lanes.begin(); k <= last; k += lanes.step())
        if (set.step[k] > 0.0) set.y[set.active[k]] = set.step[k];
      lanes.sync();
      return Descent::ray;
    }
    double length = bounded ? 1.0 : HUGE_VAL;
    int first = -1;  // to reach zero
    for (int k = 0; k <= last; ++k) {
      const double from = set.y[set.active[k]], change = sign * set.step[k];
      if (bounded ? from + change > 0.0 : change >= 0.0) continue;
      const double reach = change < 0.0 ? -from / change : 0.0;
      if (reach <= length) length = reach, first = k;
    }
    lanes.sync();  // every lane has read y before it changes
    for (int k = lanes.begin(); k <= last; k += lanes.step()) {
      const double to = set.y[set.active[k]] + length * sign * set.step[k];
      set.y[set.active[k]] = to > 0.0 ? to : 0.0;
    }
    if (first < 0) {
      lanes.sync();
      return result;
    }
    const bool in_vain = set.active[first] == entering;
    leave(set, first, in_vain || set.iterations > set.patience ? kBarred : kFree, lanes);
    if (in_vain) {
      result = Descent::refused;
      if (length == 0.0) return result;
    }
  }
  return result;
}

// What b^T y, twice what the objective has fallen at a minimum over S, may not fall below when another task enters: itself, less
// the rounding errors of y^T C y, but no less than half. Needs the slopes.
GS_HOST_DEVICE double least_gain(const ActiveSet& set) {
  const double gain = dot(set.linear, set.y, set.n), noise = rounding_of(set.n) * dot(set.y, set.magnitude, set.n);
  return fmax(gain - noise, 0.5 * gain);
}

// Back to the minimum before a task entered, which rounding made worse: where C_SS can hardly be told from a singular one.
template <class Lanes>
GS_HOST_DEVICE void restore(ActiveSet& set, int entering, Lanes lanes) {
  lanes.sync();  // every lane has read y
  if (lanes.first()) {
    int size = 0;
    for (int i = 0; i < set.n; ++i) {
      set.y[i] = set.kept[i];
      if (set.y[i] > 0.0) set.active[size++] = i;
      if (set.mark[i] == kActive) set.mark[i] = kFree;
      if (set.y[i] > 0.0) set.mark[i] = kActive;
    }
    set.mark[entering] = kBarred;
  }
  lanes.sync();
  set.size = set.factored = 0;
  for (int i = 0; i < set.n; ++i) set.size += set.y[i] > 0.0;
}

// The minimum, from the y and S that are there. Returns false for a ray: b^T y > 0 and C y = 0, y >= 0; then S has no meaning.
template <class Lanes>
GS_HOST_DEVICE bool search(ActiveSet& set, Lanes lanes) {
  const int n = set.n;
  set.patience = set.iterations + 8 * n + 16;
  for (int i = lanes.begin(); i < n; i += lanes.step())
    if (set.mark[i] == kBarred) set.mark[i] = kFree;
  if (descend(set, -1, lanes) == Descent::ray) return false;
  for (;;) {
    find_slopes(set, lanes);
    // Exchanges that rounding keeps going end where their slopes are small enough.
    const double tolerance = set.iterations <= set.patience ? rounding_of(n) : kEnough;
    int entering = -1;
    double steepest = 0.0;
    for (int i = 0; i < n; ++i) {
      if (set.mark[i] != kFree || !(set.slope[i] < steepest)) continue;
      if (set.slope[i] < -tolerance * set.magnitude[i]) entering = i, steepest = set.slope[i];
    }
    if (entering < 0) break;
    for (int i = lanes.begin(); i < n; i += lanes.step()) set.kept[i] = set.y[i];
    const double least = least_gain(set);
    lanes.sync();  // every lane knows who enters
    if (lanes.first()) {
      set.active[set.size] = entering;
      set.mark[entering] = kActive;
    }
    ++set.size;
    lanes.sync();
    const Descent descent = descend(set, entering, lanes);
    if (descent == Descent::ray) return false;
    if (dot(set.linear, set.y, n) < least) {
      restore(set, entering, lanes);
      continue;
    }
    if (descent == Descent::minimum && set.iterations <= set.patience) {
      for (int i = lanes.begin(); i < n; i += lanes.step())
        if (set.mark[i] == kBarred) set.mark[i] = kFree;
    }
  }
  if (set.factored < set.size) factorise(set, lanes);
  double largest = 0.0;  // a y that should be zero may be rounding error of the largest
  for (int i = 0; i < n; ++i) largest = fmax(largest, set.magnitude[i]);
  set.converged = true;
  for (int i = 0; i < n; ++i)
    if (set.mark[i] == kBarred && set.slope[i] < -fmax(kEnough * set.magnitude[i], rounding_of(n) * largest))
      set.converged = false;
  return true;
}

// For a C that is not positive semidefinite, being in error by more than rounding, what is sought need not exist. Where it is not
// found, C gets a ridge of the size of the negative curvature that was met on the way, then four times that, then sixteen; and
// the search starts again. Returns whether it may.
template <class Lanes>
GS_HOST_DEVICE bool add_ridge(ActiveSet& set, Lanes lanes) {
  const double error = fmax(-set.bend, rounding_of(set.n)), ridge = fmax(error, 4.0 * set.ridge);
  if (ridge > fmin(16.0 * error, kMostRidge)) return false;
  lanes.sync();  // every lane has read y and C
  for (int i = lanes.begin(); i < set.n; i += lanes.step()) set.gram[int64_t(i) * set.n + i] *= (1.0 + ridge) / (1.0 + set.ridge);
  clear(set, lanes);
  set.ridge = ridge;
  return true;
}

template <class Lanes>
GS_HOST_DEVICE bool minimise(ActiveSet& set, Lanes lanes) {
  while (search(set, lanes))
    if (set.converged || !add_ridge(set, lanes)) return true;
  return false;
}

// y^T C y <= rounding errors of it without the ridge, with b^T y for y^T C y, which equals it at the minimum: the direction is
// lost.
GS_HOST_DEVICE bool vanishes(const ActiveSet& set) {
  double square = 0.0, absolute = 0.0;
  for (int i = 0; i < set.n; ++i) {
    square += set.y[i] * (set.linear[i] - ridge_of(set, i) * set.y[i]);
    absolute += set.y[i] * (set.magnitude[i] - set.noise[i]);
  }
  return square <= rounding_of(set.n) * absolute;
}

}  // namespace gradsurgery
