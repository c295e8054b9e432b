// Random weights (Lin et al., "Reasonable effectiveness of random weighting: a litmus test for multi-task learning", TMLR 2022):
// w = softmax(z) with z ~ N(0, I), by Box and Muller from the counter (seed, step, group, task), so that ranks, devices and
// resumed runs draw the same, and a task's draw does not depend on which others are there.
//
// options: none; given: 1 for tasks that take part and 0 for those that do not, or null for all; needs a key
#pragma once

#include "dense.h"
#include "philox.h"

namespace gradsurgery {

// Uniform in (0, 1), from 53 of 64 random bits.
GS_HOST_DEVICE double open_uniform(uint32_t high, uint32_t low) {
  return (double(high >> 5) * 0x1p26 + double(low >> 6) + 0.5) * 0x1p-53;
}

// A standard normal number for one task.
GS_HOST_DEVICE double normal_draw(int64_t seed, int64_t step, uint32_t group, uint32_t task) {
  Philox random(seed, step, group, task);
  random.refill();
  const double radius = sqrt(-2.0 * log(open_uniform(random.word[0], random.word[1])));
  return radius * cos(6.283185307179586 * open_uniform(random.word[2], random.word[3]));
}

struct RandomWeights {
  static constexpr const char* kName = "random";
  static constexpr int kOptions = 0;
  static constexpr int64_t state_size(int64_t) { return 0; }
  static constexpr int64_t room(int64_t tasks) { return tasks; }

  template <class Lanes>
  GS_HOST_DEVICE static Report solve(const Problem& problem, Arena arena, Lanes lanes) {
    const int T = problem.tasks;
    double* const z = arena.doubles(T);
    for (int t = lanes.begin(); t < T; t += lanes.step()) {
      const bool takes_part = !problem.given || problem.given[t] != 0.0;
      z[t] = !problem.key ? NAN
             : takes_part ? normal_draw(problem.key[0], problem.key[1], problem.group, uint32_t(t))
                          : -INFINITY;
    }
    lanes.sync();
    double largest = -INFINITY;
    for (int t = 0; t < T; ++t) largest = fmax(largest, z[t]);
    lanes.sync();  // every lane has read z before it changes
    for (int t = lanes.begin(); t < T; t += lanes.step()) z[t] = exp(z[t] - largest);
    lanes.sync();
    const double sum = sum_of(z, T);
    for (int t = lanes.begin(); t < T; t += lanes.step()) problem.w[t] = z[t] / sum;
    Report report;
    report.stationary = -1.0;
    return report;
  }
};

}  // namespace gradsurgery
