// FairGrad in Gram space (Ban and Ji, "Fair resource allocation in multi-task learning", ICML 2024): K w = w^(-1/alpha), w > 0.
// Zero gradients get w = 0.
//
// options: alpha
#pragma once

#include "newton.h"

namespace gradsurgery {

struct FairGrad {
  static constexpr const char* kName = "fairgrad";
  static constexpr int kOptions = 1;
  static constexpr int64_t state_size(int64_t) { return 0; }
  static constexpr int64_t room(int64_t tasks) { return fair_room(tasks); }

  template <class Lanes>
  GS_HOST_DEVICE static Report solve(const Problem& problem, Arena arena, Lanes lanes) {
    const Reduced reduced = reduce(problem, arena, lanes);
    const Fair f = fair(reduced, arena);
    const Report report = solve_fair(f, 1.0 / problem.options[0], lanes);
    spread(problem, reduced, f.v, lanes);
    return report;
  }
};

}  // namespace gradsurgery
