// The matrix C of cosines of the gradients that are not zero, and its pseudo-inverse: what methods whose direction does not
// depend on the gradients' lengths work on.
#pragma once

#include "jacobi.h"
#include "reduced.h"

namespace gradsurgery {

// Eigenvalues of C, whose mean is 1, up to this are zeros that rounding has moved: of a gradient that is the float32 sum of
// others and of sums over coordinates (4e-15 together, measured for up to 75 tasks), and of the decomposition.
GS_HOST_DEVICE double cosines_tolerance(double largest) { return 1e-14 + 1e-15 * largest; }

struct Cosines {
  Reduced reduced;
  double* norm = nullptr;  // [n]: |g_i| / d_i, in [1, 2)
  Spectrum spectrum;       // of C
  double error = 0.0;      // of C, where it is more than rounding
  int rank = 0;
};

constexpr int64_t cosines_room(int64_t tasks) { return reduced_room(tasks) + tasks + spectrum_room(tasks); }

template <class Lanes>
GS_HOST_DEVICE Cosines cosines(const Problem& problem, Arena& arena, Lanes lanes) {
  Cosines result;
  result.reduced = reduce(problem, arena, lanes);
  const int n = result.reduced.size;
  const double* const gram = result.reduced.gram;
  result.norm = arena.doubles(n);
  result.spectrum = make_spectrum(n, arena);
  for (int i = lanes.begin(); i < n; i += lanes.step()) result.norm[i] = sqrt(gram[int64_t(i) * n + i]);
  lanes.sync();
  double* const c = result.spectrum.matrix;
  for (int i = lanes.begin(); i < n; i += lanes.step())
    for (int j = 0; j < n; ++j)
      c[int64_t(i) * result.spectrum.stride + j] = i == j ? 1.0 : gram[int64_t(i) * n + j] / (result.norm[i] * result.norm[j]);
  decompose(result.spectrum, lanes);
  if (n == 0) return result;
  const double rounding = cosines_tolerance(result.spectrum.values[0]);
  result.error = shown_error(result.spectrum, rounding);
  result.rank = count_above(result.spectrum, fmax(rounding, result.error));
  return result;
}

// y = C^+ b, by way of its coefficients over the eigenvectors c, which all lanes see on return.
template <class Lanes>
GS_HOST_DEVICE void pseudo_solve(const Cosines& cosines, const double* b, double* c, double* y /* all [n] */, Lanes lanes) {
  for (int k = lanes.begin(); k < cosines.rank; k += lanes.step())
    c[k] = component(cosines.spectrum, k, b, cosines.error) / cosines.spectrum.values[k];
  lanes.sync();
  compose(cosines.spectrum, cosines.rank, c, y, lanes);
}

// What the decomposition says of the problem: of independent gradients no combination vanishes, and where one does it is looked
// at. Among several it would take a search, which is not made.
GS_HOST_DEVICE Report report_of(const Cosines& cosines) {
  const int n = cosines.reduced.size;
  Report said;
  said.converged = cosines.spectrum.converged;
  said.rank = cosines.rank;
  said.iterations = cosines.spectrum.sweeps;
  said.stationary = -1.0;
  if (cosines.rank == n) said.stationary = 0.0;
  if (cosines.rank == n - 1)
    said.stationary = cancels(cosines.reduced.gram, n, cosines.spectrum.vector(n - 1), cosines.norm, n * kRankTolerance);
  return said;
}

}  // namespace gradsurgery
