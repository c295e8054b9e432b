// K -> w on the host: what the CPU operators and the `_host` module call.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "pcgrad.h"

namespace gradsurgery {

inline bool all_finite(const double* values, int64_t count) {
  for (int64_t k = 0; k < count; ++k)
    if (!std::isfinite(values[k])) return false;
  return true;
}

// The weights of one group. A non-finite K or an invalid order gives w = NaN; returns whether K is finite.
inline bool pcgrad_weights_of_group(const double* gram /* [T, T] */, int tasks, const PcgradOptions& options,
                                    const int64_t* order, const int64_t* key, double* w /* [T] */) {
  const bool finite = all_finite(gram, int64_t(tasks) * tasks);
  bool valid = finite;
  for (int j = 0; j < tasks; ++j) w[j] = 0.0;
  constexpr int kOnStack = 32;
  double dots_[kOnStack], c_[kOnStack];
  int32_t perm_[kOnStack];
  std::vector<double> heap;
  std::vector<int32_t> heap_perm;
  double *dots = dots_, *c = c_;
  int32_t* perm = perm_;
  if (tasks > kOnStack) {
    heap.resize(2 * size_t(tasks));
    heap_perm.resize(size_t(tasks));
    dots = heap.data();
    c = dots + tasks;
    perm = heap_perm.data();
  }
  for (int i = 0; i < tasks && valid; ++i) {
    const int32_t* row_order = nullptr;
    if (options.kind == OrderKind::random) {
      pcgrad_random_order(key[0], key[1], options.group, i, tasks, perm);
      row_order = perm;
    } else if (options.kind == OrderKind::given) {
      for (int k = 0; k < tasks; ++k) {
        const int64_t j = order[int64_t(i) * tasks + k];
        perm[k] = j < 0 || j >= tasks ? -1 : int32_t(j);
      }
      row_order = perm;
    }
    valid = pcgrad_row(gram, tasks, i, row_order, options.include_self, dots, c, OneLane{});
    for (int j = 0; j < tasks; ++j) w[j] += c[j];
  }
  for (int j = 0; j < tasks; ++j) w[j] = valid ? options.scale * w[j] : std::numeric_limits<double>::quiet_NaN();
  return finite;
}

// `order` [T, T] for OrderKind::given, shared by the groups; `key` = (seed, step) for OrderKind::random, where every group draws
// its own: the step is advanced by one, unless some K is not finite, so that a step which a gradient scaler skips leaves the
// state alone.
inline void pcgrad_weights(const double* gram /* [G, T, T] */, int groups, int tasks, PcgradOptions options, const int64_t* order,
                           int64_t* key, double* w /* [G, T] */) {
  bool finite = true;
  for (int g = 0; g < groups; ++g) {
    finite =
        pcgrad_weights_of_group(gram + int64_t(g) * tasks * tasks, tasks, options, order, key, w + int64_t(g) * tasks) && finite;
    ++options.group;
  }
  if (options.kind == OrderKind::random && finite) key[1] += 1;
}

}  // namespace gradsurgery
