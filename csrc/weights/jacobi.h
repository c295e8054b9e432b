// Eigenvalues and eigenvectors of a symmetric matrix by Jacobi's method: plane rotations that zero one off-diagonal element each,
// n / 2 of them on disjoint pairs of rows side by side, in the order of a round-robin tournament (Brent and Luk, "The solution of
// singular-value and symmetric eigenvalue problems on multiprocessor arrays", SISSC 1985).
//
// An element is left alone only when it is small beside the two diagonal elements of its own row and column, so that a positive
// definite matrix D C D with D diagonal has its eigenvalues to the relative accuracy that C allows, however unequal D is (Demmel
// and Veselic, "Jacobi's method is more accurate than QR", SIMAX 1992). Sweeps converge quadratically: five to ten of them.
#pragma once

#include "dense.h"

namespace gradsurgery {

constexpr int kMaxSweeps = 40;
// Of n gradients' eigenvalues, one below n times this, relative to the largest (or to the mean), is a zero that rounding of
// float32 gradients and of sums over their coordinates has moved.
constexpr double kRankTolerance = 1e-14;

struct Spectrum {
  int size = 0;              // n
  int stride = 0;            // n, made even by a row of zeros
  double* matrix = nullptr;  // [stride, stride]: the caller fills in [n, n]; destroyed
  double* vectors = nullptr;
  double* values = nullptr;  // [n], descending
  double* turn = nullptr;    // [stride]: cosine and sine of each pair's rotation
  int32_t* place = nullptr;  // [n]: the row of `vectors` that each value's vector is
  int sweeps = 0;
  bool converged = false;

  // The unit eigenvector of values[k]. [n]
  GS_HOST_DEVICE const double* vector(int k) const { return vectors + int64_t(place[k]) * stride; }
};

constexpr int64_t spectrum_room(int64_t n) { return 2 * (n + n % 2) * (n + n % 2) + n + (n + n % 2) + (n + 1) / 2; }

GS_HOST_DEVICE Spectrum make_spectrum(int n, Arena& arena) {
  Spectrum result;
  result.size = n;
  result.stride = n + n % 2;
  result.matrix = arena.doubles(int64_t(result.stride) * result.stride);
  result.vectors = arena.doubles(int64_t(result.stride) * result.stride);
  result.values = arena.doubles(n);
  result.turn = arena.doubles(result.stride);
  result.place = arena.ints(n);
  return result;
}

struct Meeting {
  int p, q;
};

// Who meets whom: in rounds 0..m - 2, each of m / 2 pairs, all pairs once (the last stays, the others go round a circle).
GS_HOST_DEVICE Meeting meeting(int round, int pair, int m) {
  if (pair == 0) return {m - 1, round};
  const int p = round + pair, q = round - pair;
  return {p < m - 1 ? p : p - (m - 1), q >= 0 ? q : q + (m - 1)};
}

// Zeroes a_pq: changes the 2x2 block, and returns cosine and sine of the rotation (1, 0 where there is nothing to do).
GS_HOST_DEVICE void rotate_pair(double* a, int m, Meeting pair, double* turn /* [2] */) {
  double& pp = a[int64_t(pair.p) * m + pair.p];
  double& qq = a[int64_t(pair.q) * m + pair.q];
  double& pq = a[int64_t(pair.p) * m + pair.q];
  turn[0] = 1.0;
  turn[1] = 0.0;
  if (fabs(pq) <= 0x1p-53 * sqrt(fabs(pp)) * sqrt(fabs(qq))) return;
  const double theta = (qq - pp) / (2.0 * pq), size = fabs(theta);
  // The smaller of the two angles; the square of a large theta would overflow, and its 1 no longer counts.
  const double t = copysign(size > 1e8 ? 0.5 / size : 1.0 / (size + sqrt(1.0 + theta * theta)), theta);
  turn[0] = 1.0 / sqrt(1.0 + t * t);
  turn[1] = t * turn[0];
  pp -= t * pq;
  qq += t * pq;
  pq = 0.0;
  a[int64_t(pair.q) * m + pair.p] = 0.0;
}

GS_HOST_DEVICE void rotate_plane(double& x, double& y, const double* turn) {
  const double held = x;
  x = turn[0] * held - turn[1] * y;
  y = turn[1] * held + turn[0] * y;
}

// The 2x2 block between two pairs, and its mirror image.
GS_HOST_DEVICE void rotate_block(double* a, int m, Meeting rows, const double* row_turn, Meeting columns,
                                 const double* column_turn) {
  double* const above = a + int64_t(rows.p) * m;
  double* const below = a + int64_t(rows.q) * m;
  double pp = above[columns.p], pq = above[columns.q], qp = below[columns.p], qq = below[columns.q];
  rotate_plane(pp, qp, row_turn);
  rotate_plane(pq, qq, row_turn);
  rotate_plane(pp, pq, column_turn);
  rotate_plane(qp, qq, column_turn);
  above[columns.p] = pp;
  above[columns.q] = pq;
  below[columns.p] = qp;
  below[columns.q] = qq;
  double* const left = a + int64_t(columns.p) * m;
  double* const right = a + int64_t(columns.q) * m;
  left[rows.p] = pp;
  right[rows.p] = pq;
  left[rows.q] = qp;
  right[rows.q] = qq;
}

// One round of disjoint rotations. Returns whether there was anything to rotate; all lanes agree.
template <class Lanes>
GS_HOST_DEVICE bool rotate_round(Spectrum& spectrum, int round, Lanes lanes) {
  const int m = spectrum.stride, pairs = m / 2;
  double* const a = spectrum.matrix;
  double* const turn = spectrum.turn;
  for (int k = lanes.begin(); k < pairs; k += lanes.step()) rotate_pair(a, m, meeting(round, k, m), turn + 2 * k);
  lanes.sync();
  bool turned = false;
  for (int k = 0; k < pairs; ++k) turned = turned || turn[2 * k + 1] != 0.0;
  if (turned) {
    for (int k = lanes.begin(); k < pairs; k += lanes.step())
      for (int l = k + 1; l < pairs; ++l)
        if (turn[2 * k + 1] != 0.0 || turn[2 * l + 1] != 0.0)
          rotate_block(a, m, meeting(round, k, m), turn + 2 * k, meeting(round, l, m), turn + 2 * l);
    for (int k = 0; k < pairs; ++k) {
      if (turn[2 * k + 1] == 0.0) continue;
      const Meeting pair = meeting(round, k, m);
      double* const x = spectrum.vectors + int64_t(pair.p) * m;
      double* const y = spectrum.vectors + int64_t(pair.q) * m;
      for (int i = lanes.begin(); i < m; i += lanes.step()) rotate_plane(x[i], y[i], turn + 2 * k);
    }
  }
  lanes.sync();  // the next round writes what this one has read
  return turned;
}

// Decomposes `matrix`, which its callers have filled.
template <class Lanes>
GS_HOST_DEVICE void decompose(Spectrum& spectrum, Lanes lanes) {
  const int n = spectrum.size, m = spectrum.stride;
  for (int i = lanes.begin(); i < m; i += lanes.step()) {
    for (int j = 0; j < m; ++j) spectrum.vectors[int64_t(i) * m + j] = i == j ? 1.0 : 0.0;
    if (m > n) spectrum.matrix[int64_t(i) * m + n] = spectrum.matrix[int64_t(n) * m + i] = 0.0;
  }
  lanes.sync();
  while (!spectrum.converged && spectrum.sweeps < kMaxSweeps) {
    bool turned = false;
    for (int round = 0; round < m - 1; ++round) turned = rotate_round(spectrum, round, lanes) || turned;
    spectrum.converged = !turned;
    ++spectrum.sweeps;
  }
  const double* const a = spectrum.matrix;
  for (int k = lanes.begin(); k < n; k += lanes.step()) {
    const double value = a[int64_t(k) * m + k];
    int larger = 0;
    for (int l = 0; l < n; ++l) {
      const double other = a[int64_t(l) * m + l];
      larger += other > value || (other == value && l < k);
    }
    spectrum.values[larger] = value;
    spectrum.place[larger] = k;
  }
  lanes.sync();
}

// How many eigenvalues are above a threshold.
GS_HOST_DEVICE int count_above(const Spectrum& spectrum, double threshold) {
  int count = 0;
  while (count < spectrum.size && spectrum.values[count] > threshold) ++count;
  return count;
}

// A Gram matrix has no negative eigenvalue, so that one below -rounding shows how large the errors of this one are, and nothing
// up to several times that means anything. 0 where rounding alone is seen.
GS_HOST_DEVICE double shown_error(const Spectrum& spectrum, double rounding) {
  const double least = spectrum.values[spectrum.size - 1];
  return least < -rounding ? -16.0 * least : 0.0;
}

// <vector k, b>, and 0 where that is a difference of equal numbers to rounding, or to an error of the matrix: divided by a small
// eigenvalue, noise would pass for a direction.
GS_HOST_DEVICE double component(const Spectrum& spectrum, int k, const double* b /* [n] */, double error) {
  const double* const vector = spectrum.vector(k);
  double sum = 0.0, size = 0.0;
  for (int i = 0; i < spectrum.size; ++i) {
    sum += vector[i] * b[i];
    size += fabs(vector[i] * b[i]);
  }
  return fabs(sum) <= (spectrum.size * 0x1p-50 + error / spectrum.values[k]) * size ? 0.0 : sum;
}

// y = sum over the first `count` k of c_k times vector k.
template <class Lanes>
GS_HOST_DEVICE void compose(const Spectrum& spectrum, int count, const double* c, double* y /* [n] */, Lanes lanes) {
  for (int i = lanes.begin(); i < spectrum.size; i += lanes.step()) {
    double sum = 0.0;
    for (int k = 0; k < count; ++k) sum += c[k] * spectrum.vector(k)[i];
    y[i] = sum;
  }
}

// Whether the positive part of +-z, z_i / unit_i each, is a combination of gradients that cancels: |sum_i x_i g_i|^2 is below
// `tolerance` sum_i x_i^2 |g_i|^2. Every lane computes it whole.
GS_HOST_DEVICE bool cancels(const double* gram /* [n, n] */, int n, const double* z, const double* unit, double tolerance) {
  const double sign = sum_of(z, n) < 0.0 ? -1.0 : 1.0;
  double square = 0.0, size = 0.0;
  for (int i = 0; i < n; ++i) {
    const double x = sign * z[i] / unit[i];
    if (!(x > 0.0)) continue;
    const double* const row = gram + int64_t(i) * n;
    size += x * x * row[i];
    for (int j = 0; j < n; ++j) {
      const double y = sign * z[j] / unit[j];
      if (y > 0.0) square += x * y * row[j];
    }
  }
  return size > 0.0 && square <= tolerance * size;
}

}  // namespace gradsurgery
