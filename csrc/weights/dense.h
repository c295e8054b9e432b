// Small dense linear algebra for the solvers: row-major, float64, sums in a fixed order.
#pragma once

#include "solver.h"

namespace gradsurgery {

// Every lane computes it whole, so that all branch alike on it.
GS_HOST_DEVICE double dot(const double* x, const double* y, int n) {
  double sum = 0.0;
  for (int k = 0; k < n; ++k) sum += x[k] * y[k];
  return sum;
}

GS_HOST_DEVICE double sum_of(const double* x, int n) {
  double sum = 0.0;
  for (int k = 0; k < n; ++k) sum += x[k];
  return sum;
}

// y = A x for A [n, n]; y is not x. Seen by all lanes on return.
template <class Lanes>
GS_HOST_DEVICE void multiply(const double* a, const double* x, double* y, int n, Lanes lanes) {
  for (int i = lanes.begin(); i < n; i += lanes.step()) y[i] = dot(a + int64_t(i) * n, x, n);
  lanes.sync();
}

// A = L L^T in place, in the lower triangle of the first n rows of A [n, stride]. Returns n, or the first row whose pivot is at
// most `tolerance` times its diagonal element: to rounding a combination of the rows before it; the factor of those stands.
// The first `done` rows are those of L already.
template <class Lanes>
GS_HOST_DEVICE int cholesky(double* a, int n, int stride, double tolerance, Lanes lanes, int done = 0) {
  for (int k = 0; k < n; ++k) {
    double* const row = a + int64_t(k) * stride;
    double root = row[k];
    if (k >= done) {
      const double pivot = root - dot(row, row, k);
      const bool dependent = !(pivot > tolerance * root);
      lanes.sync();  // every lane has read the diagonal element before it changes
      if (dependent) return k;
      root = sqrt(pivot);
      if (lanes.first()) row[k] = root;
    }
    for (int i = (k < done ? done : k + 1) + lanes.begin(); i < n; i += lanes.step()) {
      double* const below = a + int64_t(i) * stride;
      below[k] = (below[k] - dot(below, row, k)) / root;
    }
    lanes.sync();
  }
  return n;
}

// b <- (L L^T)^-1 b for the lower triangle L of the first n rows of [n, stride].
template <class Lanes>
GS_HOST_DEVICE void cholesky_solve(const double* l, int n, int stride, double* b, Lanes lanes) {
  for (int k = 0; k < n; ++k) {
    const double x = b[k] / l[int64_t(k) * stride + k];
    lanes.sync();
    if (lanes.first()) b[k] = x;
    for (int i = k + 1 + lanes.begin(); i < n; i += lanes.step()) b[i] -= l[int64_t(i) * stride + k] * x;
    lanes.sync();
  }
  for (int k = n - 1; k >= 0; --k) {
    const double x = b[k] / l[int64_t(k) * stride + k];
    lanes.sync();
    if (lanes.first()) b[k] = x;
    for (int i = lanes.begin(); i < k; i += lanes.step()) b[i] -= l[int64_t(k) * stride + i] * x;
    lanes.sync();
  }
}

}  // namespace gradsurgery
