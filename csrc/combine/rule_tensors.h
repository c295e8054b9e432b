// A coordinate-wise rule from the operator's arguments; see gradsurgery/ops/schema.py. Values were checked in Python, what is
// checked again here protects memory.
#pragma once

#include <torch/csrc/stable/library.h>

#include "../common/tensors.h"
#include "coordinatewise.h"

namespace gradsurgery {

inline Rule rule_of(const std::string& name, const std::vector<double>& options, int64_t tasks) {
  const auto expect = [&](size_t count) {
    STD_TORCH_CHECK(options.size() == count, "gradsurgery: ", name, " takes ", count, " options, found ", options.size());
  };
  Rule rule;
  if (name == "graddrop") {
    rule.kind = RuleKind::graddrop;
    if (!options.empty()) expect(size_t(tasks));
    rule.leak = options;
  } else if (name == "sign_agreement") {
    expect(2);
    rule.kind = RuleKind::sign_agreement;
    rule.threshold = options[0];
    rule.mean = options[1] != 0;
  } else if (name == "trimmed_mean") {
    expect(1);
    rule.kind = RuleKind::trimmed_mean;
    STD_TORCH_CHECK(options[0] >= 0 && options[0] < double(tasks), "gradsurgery: trim must be in 0..tasks-1");
    rule.trim = int(options[0]);
  } else {
    STD_TORCH_CHECK(name == "median", "gradsurgery: no coordinate-wise rule is called ", name);
    expect(0);
  }
  return rule;
}

// The rows of one call; something is left at every position after trimming.
inline Rows rows_for(const Rule& rule, const Gradients& grads, int64_t tasks, bool stacked, const std::vector<Tensor>& out) {
  // Random numbers belong to coordinates, however these lie in memory.
  Rows rows = rows_of(grads, tasks, stacked, &out, {}, 1, rule.draws() ? Coordinates::row_major : Coordinates::any);
  if (rule.kind == RuleKind::trimmed_mean)
    for (size_t p = 0; p < rows.pieces.size(); ++p) {
      if (rows.pieces[p].numel == 0) continue;
      int present = 0;
      for (int t = 0; t < rows.tasks; ++t) present += rows.row(int64_t(p), t).data != nullptr;
      STD_TORCH_CHECK(present == 0 || 2 * int64_t(rule.trim) < present, "gradsurgery: 2 * trim must be less than the ", present,
                      " gradients at one position");
    }
  return rows;
}

// Whoever draws has numbers to draw from: one a coordinate, or a key.
inline void check_draws(const Rule& rule, const Rows& rows, const std::optional<Tensor>& uniform,
                        const std::optional<Tensor>& key) {
  if (!rule.draws()) return;
  STD_TORCH_CHECK(uniform.has_value() != key.has_value(), "gradsurgery: graddrop takes either uniform or key");
  STD_TORCH_CHECK(!uniform || uniform->numel() == rows.numel, "gradsurgery: uniform must have ", rows.numel, " elements");
}

}  // namespace gradsurgery
