// Aligned-MTL (Senushkin et al., "Independent component alignment for multi-task learning", CVPR 2023): the gradients' principal
// components are given one length, sqrt(s). With K = sum_k lambda_k v_k v_k^T over the eigenvalues above rounding, n 1e-14 of the
// largest, and above the errors that a negative one shows, w = sum_k sqrt(s / lambda_k) v_k v_k^T pref, where s is the smallest,
// the (lower) median or the mean of those lambda_k.
//
// Zero gradients get 0. options: scale (an enum below), preference of every task; given: preferences, or null for that one
#pragma once

#include "jacobi.h"
#include "reduced.h"

namespace gradsurgery {

enum class AlignedScale : int { minimum, median, mean };

struct AlignedMtl {
  static constexpr const char* kName = "alignedmtl";
  static constexpr int kOptions = 2;
  static constexpr int64_t state_size(int64_t) { return 0; }
  static constexpr int64_t room(int64_t tasks) { return reduced_room(tasks) + spectrum_room(tasks) + 3 * tasks; }

  template <class Lanes>
  GS_HOST_DEVICE static Report solve(const Problem& problem, Arena arena, Lanes lanes) {
    const Reduced reduced = reduce(problem, arena, lanes);
    const int n = reduced.size;
    Spectrum spectrum = make_spectrum(n, arena);
    double* const unit = arena.doubles(problem.tasks);  // d_i over the largest: K over its square is what is decomposed
    double* const pref = arena.doubles(problem.tasks);
    double* const c = arena.doubles(problem.tasks);
    double longest = 0.0;
    for (int i = 0; i < n; ++i) longest = fmax(longest, reduced.scale[i]);
    for (int i = lanes.begin(); i < n; i += lanes.step()) {
      unit[i] = reduced.scale[i] / longest;
      pref[i] = problem.given ? problem.given[reduced.task[i]] : problem.options[1];
    }
    lanes.sync();
    for (int i = lanes.begin(); i < n; i += lanes.step())
      for (int j = 0; j < n; ++j)
        spectrum.matrix[int64_t(i) * spectrum.stride + j] = reduced.gram[int64_t(i) * n + j] * unit[i] * unit[j];
    decompose(spectrum, lanes);
    const double rounding = n > 0 ? n * kRankTolerance * spectrum.values[0] : 0.0;
    const int rank = n > 0 ? count_above(spectrum, fmax(rounding, shown_error(spectrum, rounding))) : 0;
    const AlignedScale kind = AlignedScale(int(problem.options[0]));
    double s = 0.0;
    if (rank > 0 && kind == AlignedScale::mean) s = sum_of(spectrum.values, rank) / rank;
    if (rank > 0 && kind != AlignedScale::mean) s = spectrum.values[kind == AlignedScale::minimum ? rank - 1 : rank / 2];
    for (int k = lanes.begin(); k < rank; k += lanes.step())
      c[k] = sqrt(s / spectrum.values[k]) * dot(spectrum.vector(k), pref, n);
    lanes.sync();
    Report said;
    said.converged = spectrum.converged;
    said.rank = rank;
    said.iterations = spectrum.sweeps;
    for (int i = lanes.begin(); i < n; i += lanes.step()) pref[i] = 1.0 / unit[i];
    lanes.sync();
    said.stationary = rank == n ? 0.0 : -1.0;  // as of the matrix of cosines, see report_of there
    if (rank == n - 1) said.stationary = cancels(reduced.gram, n, spectrum.vector(n - 1), pref, n * kRankTolerance);
    lanes.sync();  // every lane has read them before they change
    compose(spectrum, rank, c, pref, lanes);
    scatter(problem, reduced, pref, lanes);
    return said;
  }
};

}  // namespace gradsurgery
