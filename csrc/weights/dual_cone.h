// What UPGrad and DualProj share: the projection of a combination G^T u on the dual cone {x: <g_i, x> >= 0 for all i} is G^T (u +
// z) for the z >= 0 that minimises 1/2 z^T K z + (K u)^T z.
//
// options of both: p where none is given, norm_eps, reg_eps: K becomes K / tr K + reg_eps I, or reg_eps I for tr K < norm_eps
// given: p [T] >= 0, or null
#pragma once

#include "active_set.h"

namespace gradsurgery {

GS_HOST_DEVICE double preference(const Problem& problem, int task) {
  return problem.given ? problem.given[task] : problem.options[0];
}

// Adds reg_eps tr K to K's diagonal, in the scaled C. Returns false where tr K < norm_eps: nothing is to be projected.
template <class Lanes>
GS_HOST_DEVICE bool regularise(const Problem& problem, const Reduced& reduced, Lanes lanes) {
  const double norm_eps = problem.options[1], reg_eps = problem.options[2];
  double trace = 0.0;
  for (int t = 0; t < problem.tasks; ++t) trace += problem.gram[int64_t(t) * problem.tasks + t];
  if (trace < norm_eps) return false;
  if (reg_eps > 0.0) {
    for (int i = lanes.begin(); i < reduced.size; i += lanes.step())
      reduced.gram[int64_t(i) * reduced.size + i] += reg_eps * trace / reduced.scale[i] / reduced.scale[i];
  }
  return true;
}

// y = z for u [n]. There is no ray, for sum_i d_i g_i = 0 leaves the objective as it is. Returns whether G^T (u + z) vanishes as
// far as K can tell: then that is a convex combination, up to its length, which does.
template <class Lanes>
GS_HOST_DEVICE bool project_on_dual_cone(ActiveSet& set, const double* u, Lanes lanes) {
  for (int i = lanes.begin(); i < set.n; i += lanes.step()) {
    const double* const row = set.gram + int64_t(i) * set.n;
    double sum = 0.0, absolute = 0.0;
    for (int j = 0; j < set.n; ++j) {
      sum += row[j] * u[j];
      absolute += fabs(row[j] * u[j]);
    }
    set.linear[i] = ridge_of(set, i) * u[i] - sum;
    set.noise[i] = absolute;
  }
  clear(set, lanes);
  set.rays = false;
  minimise(set, lanes);
  double square = 0.0, absolute = 0.0;
  for (int i = 0; i < set.n; ++i) {
    square += (u[i] + set.y[i]) * (set.slope[i] - ridge_of(set, i) * set.y[i]);
    absolute += (u[i] + set.y[i]) * set.magnitude[i];
  }
  return set.n > 0 && square <= rounding_of(set.n) * absolute;
}

// w = p + D^-1 z.
template <class Lanes>
GS_HOST_DEVICE void spread_projection(const Problem& problem, const Reduced& reduced, const double* z, Lanes lanes) {
  spread(problem, reduced, z, lanes);
  for (int t = lanes.begin(); t < problem.tasks; t += lanes.step()) problem.w[t] += preference(problem, t);
}

}  // namespace gradsurgery
