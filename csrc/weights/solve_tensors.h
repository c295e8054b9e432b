// What `solve` asks of its arguments on every device; see gradsurgery/ops/schema.py. Solvers index options and memory without a
// look at their size, so that a wrong one must not reach them. Types, devices and contiguity are the registers' to check.
#pragma once

#include <torch/csrc/stable/library.h>

#include "../common/tensors.h"
#include "solve.h"

namespace gradsurgery {

struct SolveSizes {
  int solver;  // position in GS_FOR_EACH_SOLVER
  int64_t groups, tasks;
  int64_t state_size;  // of one group; 0 for a call without memory
};

inline SolveSizes check_solve(const Tensor& gram, const std::string& name, const std::vector<double>& options,
                              const std::optional<Tensor>& given, const std::optional<Tensor>& state) {
  const auto [groups, tasks] = check_gram(gram);
  const int index = find_solver(name);
  STD_TORCH_CHECK(index >= 0, "gradsurgery: there is no compiled solver ", name);
  const HostSolver& solver = kHostSolvers[index];
  STD_TORCH_CHECK(options.size() == size_t(solver.options), "gradsurgery: solver ", name, " takes ", solver.options,
                  solver.options == 1 ? " option" : " options", ", found ", options.size());
  STD_TORCH_CHECK(!given || (given->dim() == 1 && given->size(0) == tasks), "gradsurgery: given must be [", tasks,
                  "], a number a task");
  const int64_t state_size = state ? solver.state_size(tasks) : 0;
  STD_TORCH_CHECK(!state || state_size > 0, "gradsurgery: solver ", name, " takes no state");
  STD_TORCH_CHECK(!state || state->numel() == groups * state_size, "gradsurgery: solver ", name, " takes a state of ",
                  groups * state_size, groups * state_size == 1 ? " number" : " numbers", " for ", groups,
                  groups == 1 ? " group" : " groups", " of ", tasks, tasks == 1 ? " task" : " tasks", ", found ", state->numel());
  return {index, groups, tasks, state_size};
}

}  // namespace gradsurgery
