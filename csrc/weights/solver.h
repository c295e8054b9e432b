// What the solvers K -> w have in common: one text for the CPU, where one lane runs it, and for CUDA, where a warp does.
//
// All lanes of a warp take the same branches, because every one of them computes the scalars that branches depend on, from memory
// that all of them see; only loops over rows are shared out (begin, step), and whoever reads what another lane wrote calls sync()
// first. Memory that all lanes need is written by the first lane alone.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/macros.h"

namespace gradsurgery {

// One processor walking a row alone; CUDA passes a warp that owns every 32nd element instead.
struct OneLane {
  GS_HOST_DEVICE int begin() const { return 0; }
  GS_HOST_DEVICE int step() const { return 1; }
  GS_HOST_DEVICE bool first() const { return true; }
  GS_HOST_DEVICE void sync() const {}
};

// What a solver says of its answer, in the order of its four numbers.
struct Report {
  double converged = 1.0;   // to rounding, or to the errors that a K with negative curvature shows; 0: the best so far
  double stationary = 0.0;  // 1: some convex combination of the gradients is zero to rounding: no direction improves all tasks;
                            // 0: none is; -1: the solver did not examine it
  double rank = -1.0;       // of K, to rounding, where the solver needs it; -1 where it does not
  double iterations = 0.0;
};

constexpr int kReportFields = 4;
constexpr int kMaxOptions = 16;

// One group of one step.
struct Problem {
  int tasks = 0;
  const double* gram = nullptr;     // [T, T], finite; symmetric, except where a solver says it is a cross-Gram matrix
  const double* options = nullptr;  // the solver's own, in the order of its header
  const double* given = nullptr;    // [T]: a number a task (a preference, a loss), or null
  const int64_t* order = nullptr;   // [T, T]: the order in which each task meets the others, or null
  const int64_t* key = nullptr;     // (seed, step) of random orders, or null
  uint32_t group = 0;
  double* state = nullptr;  // the solver's memory between steps, or null for a call without
  double* w = nullptr;      // [T], written
};

// Room that a solver may use, handed out piece by piece.
class Arena {
 public:
  GS_HOST_DEVICE explicit Arena(double* at) : at_(at) {}
  GS_HOST_DEVICE double* doubles(int64_t count) {
    double* const result = at_;
    at_ += count;
    return result;
  }
  GS_HOST_DEVICE int32_t* ints(int64_t count) { return reinterpret_cast<int32_t*>(doubles((count + 1) / 2)); }

 private:
  double* at_;
};

}  // namespace gradsurgery
