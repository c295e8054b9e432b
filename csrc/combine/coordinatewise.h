// out = f(g_1, .., g_T) for every coordinate by itself: one read of the gradients, one write, and no K.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "../common/chunks.h"
#include "../common/macros.h"

namespace gradsurgery {

enum class RuleKind : uint8_t { graddrop, sign_agreement, trimmed_mean, median };

// What to do with the values x_1, .., x_n of one coordinate, n the tasks present there. Not a number, or infinite: NaN comes out.
struct Rule {
  RuleKind kind = RuleKind::median;
  std::vector<double> leak;  // graddrop: [T], or empty for zeros
  double threshold = 1;      // sign_agreement: of |mean of the signs|
  bool mean = false;         // sign_agreement: the mean of those that agree, else their sum
  int trim = 0;              // trimmed_mean: how many of the smallest, and of the largest, are left out

  bool draws() const { return kind == RuleKind::graddrop; }
};

// The sorted values first..last-1 of `present` are averaged. trim < 0: the middle one or two.
struct Middle {
  int first, last;

  GS_HOST_DEVICE Middle(int trim, int present) {
    first = trim >= 0 ? trim : present > 0 ? (present - 1) / 2 : 0;
    last = present - first;
  }
};

// How large |sum of the signs| must be for its mean to reach the threshold, as one rounded division decides.
GS_HOST_DEVICE int needed_votes(double threshold, int present) {
  int votes = int(threshold * present);
  while (votes > 0 && double(votes - 1) / present >= threshold) --votes;
  while (votes <= present && double(votes) / present < threshold) ++votes;
  return votes;
}

// Calls exchange(i, j), i < j, for the comparisons of Batcher's merge exchange (Knuth, The Art of Computer Programming, volume 3,
// algorithm 5.2.2 M): a sorting network for any number of values.
template <class Exchange>
constexpr void merge_exchange(int count, Exchange exchange) {
  int top = 1;
  while (2 * top < count) top *= 2;
  if (count < 2) return;
  for (int p = top; p > 0; p /= 2) {
    int q = top, r = 0, d = p;
    for (bool more = true; more;) {
      for (int i = 0; i < count - d; ++i)
        if ((i & p) == r) exchange(i, i + d);
      more = q != p;
      d = q - p;
      q /= 2;
      r = p;
    }
  }
}

constexpr int comparisons(int count) {
  int total = 0;
  merge_exchange(count, [&total](int, int) { ++total; });
  return total;
}

// The network of one size as a constant, for sorting in registers.
template <int Count>
struct Network {
  static constexpr int size = comparisons(Count);
  int low[size + 1] = {}, high[size + 1] = {};

  constexpr Network() {
    int at = 0;
    merge_exchange(Count, [this, &at](int i, int j) {
      low[at] = i;
      high[at] = j;
      ++at;
    });
  }
};

template <int Count>
constexpr Network<Count> kNetwork{};

// GradDrop's random numbers are uniform [N] where given, and else drawn by key = (seed, step), whose step is then advanced: there
// is no reduction that could tell whether the step will be skipped. Sums in float64, then rounds to the output's type; an output
// may be one of the rows; a piece without any row gives zeros.
void coordinatewise_cpu(const Rows& rows, const Rule& rule, const double* uniform, int64_t* key, bool accumulate,
                        const ParallelFor& parallel);

}  // namespace gradsurgery
