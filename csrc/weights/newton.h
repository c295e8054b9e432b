// K w = w^(-1/alpha), w > 0: what FairGrad and Nash-MTL solve. A damped Newton method, because the equation is the condition for
// the minimum of the strictly convex 1/2 w^T K w + sum_i phi(w_i), phi' = -w^(-1/alpha).
//
// It works on the reduced A = D^-1 K D^-1 with v = D w, in units in which K_ii alone would give every task the same: with
// p = 1/alpha, s_i = K_ii^(-1/(1+p)) solves the equation of one task, u_i = d_i s_i, and with v_i = u_i y_i the equation is
//
//   (A v)_i = t_i,   t_i = A_ii u_i y_i^(-p),
//
// so that y = 1 is a start whatever the gradients' lengths, and h_i = p t_i / v_i is the curvature of phi in v. There is a
// solution unless a convex combination of the gradients is zero; then the iterates run away, and v itself is that combination: as
// soon as |sum_i v_i g_i|^2 is nothing but rounding beside (sum_i v_i |g_i|)^2, the problem is called stationary. Those get the
// finite solution of the equation with a ridge, A_ii (1 + 2^-36) instead of A_ii: the tasks in that combination have no direction
// left, and the others are served.
#pragma once

#include "dense.h"
#include "reduced.h"

namespace gradsurgery {

constexpr int kNewtonSteps = 200;                 // a dozen are usual, thirty common for nearly opposed gradients
constexpr int kLineSteps = 40;                    // trials of one step's length
constexpr double kRounding = 0x1p-52;             // of one operation
constexpr double kFairResidual = 0x1p-40;         // |(A v)_i - t_i| / t_i beyond what rounding explains
constexpr double kFairPolished = 0x1p-48;         // where polishing ends early
constexpr double kStationaryRidge = 0x1p-36;      // relative to each task's own squared length
constexpr double kSuspiciousCurvature = 0x1p-26;  // t_i / (A_ii v_i): so much cancels in a row that stationarity is in question

// y^(-p), by the cheap way where there is one.
GS_HOST_DEVICE double inverse_power(double y, double p) {
  if (p == 1.0) return 1.0 / y;
  if (p == 2.0) return 1.0 / (y * y);
  if (p == 0.5) return 1.0 / sqrt(y);
  return pow(y, -p);
}

struct Fair {
  int n = 0;
  const double* gram = nullptr;   // A [n, n]
  const double* scale = nullptr;  // D [n]
  double* factor = nullptr;       // [n, n]
  double* unit = nullptr;         // u [n]
  double* v = nullptr;            // the solution [n]
  double* image = nullptr;        // A v, ridge included [n]
  double* target = nullptr;       // t [n]
  double* error = nullptr;        // |A v - t| / t [n]
  double* slack = nullptr;        // what of it rounding explains [n]
  double* step = nullptr;         // [n]
  double* step_image = nullptr;   // [n]
  double* slope = nullptr;        // terms of the derivative along the step [n]
  double* bend = nullptr;         // and of the second derivative [n]
  double* held = nullptr;         // a solution kept while the question of stationarity is settled [n]
};

constexpr int64_t fair_room(int64_t tasks) { return reduced_room(tasks) + tasks * tasks + 11 * tasks; }

GS_HOST_DEVICE Fair fair(const Reduced& reduced, Arena& arena) {
  Fair f;
  const int n = f.n = reduced.size;
  f.gram = reduced.gram;
  f.scale = reduced.scale;
  f.factor = arena.doubles(int64_t(n) * n);
  f.unit = arena.doubles(n);
  f.v = arena.doubles(n);
  f.image = arena.doubles(n);
  f.target = arena.doubles(n);
  f.error = arena.doubles(n);
  f.slack = arena.doubles(n);
  f.step = arena.doubles(n);
  f.step_image = arena.doubles(n);
  f.slope = arena.doubles(n);
  f.bend = arena.doubles(n);
  f.held = arena.doubles(n);
  return f;
}

// The step -(A + H)^-1 (A v - t). Where rounding leaves A + H without a factor, as much of the diagonal is added as it takes:
// that changes the way and not the aim.
template <class Lanes>
GS_HOST_DEVICE void newton_direction(const Fair& f, double p, double ridge, Lanes lanes) {
  const int n = f.n;
  for (double shift = 0.0;; shift = shift == 0.0 ? n * kRounding : 16.0 * shift) {
    for (int i = lanes.begin(); i < n; i += lanes.step()) {
      const double* const row = f.gram + int64_t(i) * n;
      double* const copy = f.factor + int64_t(i) * n;
      for (int j = 0; j < i; ++j) copy[j] = row[j];
      copy[i] = row[i] * (1.0 + ridge + shift) + p * f.target[i] / f.v[i];
    }
    lanes.sync();
    const bool done = cholesky(f.factor, n, n, 0.0, lanes) == n || shift > n;
    if (done) break;
  }
  for (int i = lanes.begin(); i < n; i += lanes.step()) f.step[i] = f.target[i] - f.image[i];
  lanes.sync();
  cholesky_solve(f.factor, n, n, f.step, lanes);
}

// How far to go: where the derivative along the step has lost three quarters of its size, or up to .99 of the way to v_i = 0.
template <class Lanes>
GS_HOST_DEVICE double newton_length(const Fair& f, double p, double ridge, double border, Lanes lanes) {
  const int n = f.n;
  for (int i = lanes.begin(); i < n; i += lanes.step()) {
    const double* const row = f.gram + int64_t(i) * n;
    f.step_image[i] = dot(row, f.step, n) + ridge * row[i] * f.step[i];
  }
  lanes.sync();
  const double across = dot(f.step, f.image, n), along = dot(f.step, f.step_image, n);
  const double start = across - dot(f.step, f.target, n);
  double low = 0.0, high = 0.99 * border, length = high < 1.0 ? high : 1.0;
  for (int trial = 0; trial < kLineSteps; ++trial) {
    for (int i = lanes.begin(); i < n; i += lanes.step()) {
      const double v = f.v[i] + length * f.step[i];
      const double target = f.gram[int64_t(i) * n + i] * f.unit[i] * inverse_power(v / f.unit[i], p);
      f.slope[i] = target * f.step[i];
      f.bend[i] = p * target / v * f.step[i] * f.step[i];
    }
    lanes.sync();
    const double slope = across + length * along - sum_of(f.slope, n), bend = along + sum_of(f.bend, n);
    lanes.sync();  // every lane has read them
    if (fabs(slope) <= 0.25 * fabs(start)) break;
    if (slope < 0.0 && length >= high) break;
    if (slope < 0.0)
      low = length;
    else
      high = length;
    const double next = length - slope / bend;
    if (next > low && next < high && next <= 8.0 * length)
      length = next;
    else
      length = high < 8.0 * length ? 0.5 * (low + high) : 8.0 * length;
  }
  return length;
}

struct FairOutcome {
  bool converged = false, stationary = false;
  int iterations = 0;
  double curvature = 1.0;  // least t_i / (A_ii v_i)
};

// Solves for v from y = 1.
template <class Lanes>
GS_HOST_DEVICE FairOutcome newton(const Fair& f, double p, double ridge, Lanes lanes) {
  const int n = f.n;
  FairOutcome result;
  for (int i = lanes.begin(); i < n; i += lanes.step()) {
    const double square = f.gram[int64_t(i) * n + i], d = f.scale[i];
    f.unit[i] = p == 1.0 ? 1.0 / sqrt(square) : pow(d, (p - 1.0) / (p + 1.0)) * pow(square, -1.0 / (p + 1.0));
    f.v[i] = f.unit[i];
  }
  lanes.sync();
  double last = HUGE_VAL;
  for (; result.iterations < kNewtonSteps; ++result.iterations) {
    for (int i = lanes.begin(); i < n; i += lanes.step()) {
      const double* const row = f.gram + int64_t(i) * n;
      double sum = 0.0, size = 0.0;
      for (int j = 0; j < n; ++j) {
        sum += row[j] * f.v[j];
        size += fabs(row[j]) * f.v[j];
      }
      f.image[i] = sum + ridge * row[i] * f.v[i];
      f.target[i] = row[i] * f.unit[i] * inverse_power(f.v[i] / f.unit[i], p);
      f.error[i] = fabs(f.image[i] - f.target[i]) / f.target[i];
      f.slack[i] = n * kRounding * size / f.target[i];
      f.slope[i] = f.v[i] * sqrt(row[i]);
    }
    lanes.sync();
    double worst = 0.0;
    result.converged = true;
    result.curvature = HUGE_VAL;
    for (int i = 0; i < n; ++i) {
      worst = fmax(worst, f.error[i]);
      if (!(f.error[i] <= kFairResidual + f.slack[i])) result.converged = false;
      result.curvature = fmin(result.curvature, f.target[i] / (f.gram[int64_t(i) * n + i] * f.v[i]));
    }
    const double reach = sum_of(f.slope, n), square = dot(f.v, f.image, n);
    lanes.sync();  // every lane has read what the next step overwrites
    if (!(square > 16.0 * n * kRounding * reach * reach)) {
      result.converged = false;
      result.stationary = true;
      return result;
    }
    if (result.converged && (worst <= kFairPolished || worst > 0.5 * last)) return result;
    if (result.converged) last = worst;
    newton_direction(f, p, ridge, lanes);
    double border = HUGE_VAL, change = 0.0;
    for (int i = 0; i < n; ++i) {
      const double relative = f.step[i] / f.v[i];
      if (relative < 0.0) border = fmin(border, -1.0 / relative);
      change = fmax(change, fabs(relative));
    }
    const double length = change <= 0.125 ? 1.0 : newton_length(f, p, ridge, border, lanes);
    lanes.sync();
    for (int i = lanes.begin(); i < n; i += lanes.step()) f.v[i] += length * f.step[i];
    lanes.sync();
  }
  return result;
}

// The fair v of a reduced problem, the whole story. For p = 1, v is seen by all lanes on return.
template <class Lanes>
GS_HOST_DEVICE Report solve_fair(const Fair& f, double p, Lanes lanes) {
  Report report;
  report.stationary = 1.0;
  if (f.n == 0) return report;
  FairOutcome found = newton(f, p, 0.0, lanes);
  int iterations = found.iterations;
  if (p != 1.0 && !found.stationary && (!found.converged || found.curvature < kSuspiciousCurvature)) {
    // Whether a combination vanishes does not depend on p, and p = 1 weighs all tasks alike in looking for it.
    for (int i = lanes.begin(); i < f.n; i += lanes.step()) f.held[i] = f.v[i];
    const FairOutcome decided = newton(f, 1.0, 0.0, lanes);
    iterations += decided.iterations;
    found.stationary = decided.stationary;
    for (int i = lanes.begin(); i < f.n; i += lanes.step()) f.v[i] = f.held[i];
  }
  if (found.stationary) {
    FairOutcome ridged;
    for (double ridge = kStationaryRidge; !ridged.converged && ridge < 1.0; ridge *= 256.0) {
      ridged = newton(f, p, ridge, lanes);
      iterations += ridged.iterations;
    }
    found.converged = ridged.converged;
  }
  report.converged = found.converged ? 1.0 : 0.0;
  report.stationary = found.stationary ? 1.0 : 0.0;
  report.iterations = iterations;
  return report;
}

}  // namespace gradsurgery
