// K -> w by a solver's name on the host: what the CPU operator and the `_host` module call.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <string>

#include "../common/scratch.h"
#include "solvers.h"
#include "weights.h"

namespace gradsurgery {

// A solver as the host sees it: position in GS_FOR_EACH_SOLVER, and what it runs.
struct HostSolver {
  const char* name;
  int options;                           // how many numbers it takes
  int64_t (*state_size)(int64_t tasks);  // numbers of one group's memory; 0 for a solver without
  int64_t (*room)(int64_t tasks);
  Report (*solve)(const Problem& problem, Arena arena);
};

inline constexpr HostSolver kHostSolvers[] = {
#define GS_HOST_SOLVER(Solver)                                                                                    \
  HostSolver{Solver::kName, Solver::kOptions, [](int64_t tasks) -> int64_t { return Solver::state_size(tasks); }, \
             [](int64_t tasks) -> int64_t { return Solver::room(tasks); },                                        \
             [](const Problem& problem, Arena arena) { return Solver::solve(problem, arena, OneLane{}); }},
    GS_FOR_EACH_SOLVER(GS_HOST_SOLVER)
#undef GS_HOST_SOLVER
};

constexpr bool options_fit() {
  for (const HostSolver& solver : kHostSolvers)
    if (solver.options > kMaxOptions) return false;
  return true;
}
static_assert(options_fit(), "a solver takes more options than a launch carries");

// Position of a solver, or -1.
inline int find_solver(const std::string& name) {
  int index = 0;
  for (const HostSolver& solver : kHostSolvers) {
    if (name == solver.name) return index;
    ++index;
  }
  return -1;
}

// Weights of all groups. `problem` is that of group 0; gram [G, T, T], state [G, state_size], w [G, T] and report [G, 4] follow
// on for the others, and the rest is shared. A group whose K is not finite gets w = NaN. Then, too, no state and no key changes:
// the gradients are broken, and a gradient scaler will skip the step.
inline void solve_groups(const HostSolver& solver, Problem problem, int groups, int64_t state_size, int64_t* key,
                         double* report) {
  const int64_t square = int64_t(problem.tasks) * problem.tasks;
  const bool finite = all_finite(problem.gram, groups * square);
  const bool keep = problem.state && !finite;
  Scratch<double, 1024> room(size_t(solver.room(problem.tasks) + (keep ? state_size : 0)));
  problem.key = key;
  for (int g = 0; g < groups; ++g) {
    problem.group = uint32_t(g);
    Arena arena(room.data());
    double* const state = problem.state;
    if (keep) {
      problem.state = arena.doubles(state_size);
      std::copy(state, state + state_size, problem.state);
    }
    Report said;
    if (all_finite(problem.gram, square)) {
      said = solver.solve(problem, arena);
    } else {
      std::fill(problem.w, problem.w + problem.tasks, std::numeric_limits<double>::quiet_NaN());
      said.converged = 0.0;
      said.stationary = -1.0;
    }
    const double fields[kReportFields] = {said.converged, said.stationary, said.rank, said.iterations};
    std::copy(fields, fields + kReportFields, report + int64_t(g) * kReportFields);
    problem.gram += square;
    problem.w += problem.tasks;
    problem.state = state ? state + state_size : nullptr;
  }
  if (key && finite) key[1] += 1;
}

}  // namespace gradsurgery
