// Nash-MTL in Gram space (Navon et al., "Multi-task learning as a bargaining game", ICML 2022): K w = 1 / w, w > 0, then the
// combined gradient is clipped to max_norm. |sum_t w_t g_t|^2 = sum_t w_t (K w)_t is the number of gradients that are not zero,
// so that the clip needs nothing but that number. Zero gradients get w = 0.
//
// options: max_norm (0: no clip)
#pragma once

#include "newton.h"

namespace gradsurgery {

struct NashMTL {
  static constexpr const char* kName = "nashmtl";
  static constexpr int kOptions = 1;
  static constexpr int64_t state_size(int64_t) { return 0; }
  static constexpr int64_t room(int64_t tasks) { return fair_room(tasks); }

  template <class Lanes>
  GS_HOST_DEVICE static Report solve(const Problem& problem, Arena arena, Lanes lanes) {
    const Reduced reduced = reduce(problem, arena, lanes);
    const Fair f = fair(reduced, arena);
    const Report report = solve_fair(f, 1.0, lanes);
    double square = reduced.size;
    if (report.stationary != 0.0 || report.converged == 0.0) {  // the equation above does not hold
      multiply(f.gram, f.v, f.image, reduced.size, lanes);
      square = fmax(dot(f.v, f.image, reduced.size), 0.0);
      lanes.sync();  // every lane has read v
    }
    const double max_norm = problem.options[0], norm = sqrt(square);
    if (max_norm > 0.0 && norm > max_norm) {
      for (int i = lanes.begin(); i < reduced.size; i += lanes.step()) f.v[i] *= max_norm / norm;
    }
    spread(problem, reduced, f.v, lanes);
    return report;
  }
};

}  // namespace gradsurgery
