// From torch's tensors to Rows. Used by the CPU and the CUDA operators; shapes and types were checked in Python, what is checked
// again here only protects memory.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "layout.h"
#include "rows.h"

namespace gradsurgery {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Gradients = std::vector<std::optional<Tensor>>;
// As operators take it: passing an empty list would cost every call without groups an allocation.
using Groups = std::optional<std::vector<int64_t>>;

inline std::vector<int64_t> groups_of(const Groups& given) { return given ? *given : std::vector<int64_t>(); }

// Tensor::scalar_type asks torch for the code of one type after the other, which for thousands of gradients takes as long as all
// else that is asked of them.
inline Scalar scalar_of(const Tensor& tensor) {
  static const int32_t codes[] = {aoti_torch_dtype_float64(), aoti_torch_dtype_float32(), aoti_torch_dtype_bfloat16(),
                                  aoti_torch_dtype_float16()};  // in Scalar's order
  int32_t code = -1;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
  const auto found = std::find(std::begin(codes), std::end(codes), code);
  STD_TORCH_CHECK(found != std::end(codes), "gradsurgery: gradients must be float64, float32, bfloat16 or float16");
  return Scalar(found - codes);
}

struct Counts {
  int64_t groups, tasks;
};

// G and T of K [T, T], which is one group, or [G, T, T].
inline Counts check_gram(const Tensor& gram) {
  const int64_t dims = gram.dim(), tasks = dims >= 2 ? gram.size(dims - 1) : 0, groups = dims == 3 ? gram.size(0) : 1;
  STD_TORCH_CHECK((dims == 2 || dims == 3) && gram.size(dims - 2) == tasks && tasks >= 1 && groups >= 1,
                  "gradsurgery: gram must be [T, T] or [G, T, T]");
  return {groups, tasks};
}

// G and T of w: [T], or [G, T] for tensors in groups.
inline Counts check_weights(const Tensor& weights, const std::vector<int64_t>& groups) {
  STD_TORCH_CHECK(weights.dim() == (groups.empty() ? 1 : 2), "gradsurgery: weights must be [T], or [G, T] with groups");
  return groups.empty() ? Counts{1, weights.size(0)} : Counts{weights.size(0), weights.size(1)};
}

// In which order a piece's coordinates may come.
enum class Coordinates : uint8_t {
  any,            // one in which the tensors are dense, if there is one
  row_major,      // that of the dimensions, even where the tensors lie in another one in memory
  samples_first,  // one in which dimension 0 is outermost
};

// Collects the rows of one piece after another.
class RowsBuilder {
 public:
  RowsBuilder(int tasks, int64_t pieces, Coordinates coordinates) : coordinates_(coordinates) {
    STD_TORCH_CHECK(tasks >= 1, "gradsurgery: at least one task is needed");
    result_.tasks = tasks;
    result_.pieces.reserve(pieces);
    result_.rows.reserve(pieces * tasks);
  }

  // `first`..: one entry a task, `step` apart; null entries are absent tasks. `out` may be null.
  void add(const std::optional<Tensor>* first, int64_t step, const Tensor* out) {
    begin();
    push_entries(first, step, result_.tasks);
    finish(out);
  }

  // [T, ...]: the tasks are the slices of one tensor.
  void add_stacked(const Tensor& g, const Tensor* out) {
    begin();
    push_slices(g, result_.tasks, static_cast<const char*>(g.const_data_ptr()));
    finish(out);
  }

  // T gradients, given either way, then the T slices of their buffer [T, ...], of which the kernel may write; for a builder of 2
  // T rows.
  void add_buffered(const std::optional<Tensor>* first, int64_t step, bool stacked, const Tensor& buffer) {
    begin();
    const int tasks = result_.tasks / 2;
    if (stacked) {
      STD_TORCH_CHECK(first->has_value(), "gradsurgery: a stacked gradient cannot be None");
      push_slices(**first, tasks, static_cast<const char*>((*first)->const_data_ptr()));
    } else {
      push_entries(first, step, tasks);
    }
    push_slices(buffer, tasks, static_cast<const char*>(buffer.mutable_data_ptr()));
    finish(nullptr);
  }

  Rows take() { return std::move(result_); }

 private:
  void begin() {
    all_contiguous_ = true;
    geometries_.clear();
    members_.clear();
  }

  void push_entries(const std::optional<Tensor>* first, int64_t step, int tasks) {
    for (int t = 0; t < tasks; ++t) {
      const std::optional<Tensor>& g = first[t * step];
      if (g)
        push(*g, {g->sizes().data(), g->strides().data(), int(g->dim())}, static_cast<const char*>(g->const_data_ptr()),
             g->is_contiguous());
      else
        result_.rows.emplace_back();
    }
  }

  void push_slices(const Tensor& g, int tasks, const char* data) {
    STD_TORCH_CHECK(g.dim() >= 1 && g.size(0) == tasks, "gradsurgery: a stacked gradient must be [tasks, ...]");
    const Geometry slice{g.sizes().data() + 1, g.strides().data() + 1, int(g.dim()) - 1};
    const int64_t step = g.stride(0) * size_of(scalar_of(g));
    const bool dense = g.is_contiguous();
    for (int t = 0; t < tasks; ++t) push(g, slice, data + t * step, dense);
  }

  void push(const Tensor& tensor, const Geometry& geometry, const char* data, bool contiguous) {
    all_contiguous_ = all_contiguous_ && contiguous;
    int64_t numel = 1;
    for (int d = 0; d < geometry.ndim; ++d) numel *= geometry.sizes[d];
    STD_TORCH_CHECK(geometries_.empty() || (numel == numel_ && geometry.ndim == geometries_.front().ndim),
                    "gradsurgery: the tasks' gradients of one tensor must have one shape");
    numel_ = numel;
    geometries_.push_back(geometry);
    members_.push_back(result_.rows.size());
    result_.rows.push_back(Row{data, -1, scalar_of(tensor)});
  }

  void finish(const Tensor* out) {
    if (out) {
      // Through the same list as the rows, so that it takes part in choosing the order; moved to `out` below.
      push(*out, {out->sizes().data(), out->strides().data(), int(out->dim())}, static_cast<const char*>(out->mutable_data_ptr()),
           out->is_contiguous());
    }
    if (geometries_.empty()) {  // no task has a gradient here, and nothing is written
      result_.pieces.push_back(Piece{0, result_.numel});
      return;
    }
    if (!all_contiguous_) {
      const std::vector<int> order = coordinates_ == Coordinates::row_major       ? dimension_order(geometries_.front())
                                     : coordinates_ == Coordinates::samples_first ? samples_order(geometries_)
                                                                                  : common_order(geometries_);
      for (size_t m = 0; m < members_.size(); ++m) {
        if (is_dense_in(geometries_[m], order)) continue;
        result_.rows[members_[m]].strided = int32_t(result_.strided.size());
        result_.strided.push_back(strided_in(geometries_[m], order));
      }
    }
    if (out) {
      result_.out.push_back(result_.rows.back());
      result_.rows.pop_back();
    }
    result_.pieces.push_back(Piece{numel_, result_.numel});
    result_.numel += numel_;
  }

  Rows result_;
  Coordinates coordinates_;
  bool all_contiguous_ = true;
  int64_t numel_ = 0;
  std::vector<Geometry> geometries_;
  std::vector<size_t> members_;
};

// The pieces of each group together, in their order: their positions [P], and the first of each group [G + 1].
struct Grouping {
  std::vector<int64_t> order, first;

  Grouping(const std::vector<int64_t>& groups, int64_t count) : order(groups.size()), first(size_t(count) + 1) {
    for (const int64_t group : groups) {
      STD_TORCH_CHECK(group >= 0 && group < count, "gradsurgery: groups must be in 0..", count - 1, ", found ", group);
      ++first[group + 1];
    }
    for (int64_t g = 0; g < count; ++g) first[g + 1] += first[g];
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (size_t p = 0; p < groups.size(); ++p) order[next[groups[p]]++] = int64_t(p);
  }
};

// The number of groups that the pieces' groups name, of which each must have a piece: at most as many as there are pieces.
inline int64_t count_groups(const std::vector<int64_t>& groups) {
  const int64_t pieces = int64_t(groups.size());
  std::vector<bool> met(groups.size());
  int64_t count = 0;
  for (const int64_t group : groups) {
    STD_TORCH_CHECK(group >= 0 && group < pieces, "gradsurgery: groups of ", pieces, " tensors must be in 0..", pieces - 1,
                    ", found ", group);
    met[group] = true;
    count = std::max(count, group + 1);
  }
  for (int64_t group = 0; group < count; ++group)
    STD_TORCH_CHECK(met[group], "gradsurgery: every group must have a tensor, found none in group ", group);
  return count;
}

// grads: [P] stacked tensors [T, ...], or [T, P] task-major entries of which some may be absent. out: [P] or none. groups: of
// each position, in 0..count-1, or empty for a single group; the pieces of the result are sorted by it.
inline Rows rows_of(const Gradients& grads, int64_t tasks, bool stacked, const std::vector<Tensor>* out,
                    const std::vector<int64_t>& groups, int64_t count, Coordinates coordinates = Coordinates::any) {
  STD_TORCH_CHECK(tasks >= 1 && (stacked || grads.size() % tasks == 0), "gradsurgery: expected tasks * tensors gradients");
  const int64_t pieces = stacked ? grads.size() : grads.size() / tasks;
  STD_TORCH_CHECK(!out || int64_t(out->size()) == pieces, "gradsurgery: out must have one tensor a gradient");
  STD_TORCH_CHECK(groups.empty() || int64_t(groups.size()) == pieces, "gradsurgery: groups must have one number a tensor");
  RowsBuilder builder(int(tasks), pieces, coordinates);
  std::optional<Grouping> grouping;
  if (!groups.empty()) grouping.emplace(groups, count);
  for (int64_t k = 0; k < pieces; ++k) {
    const int64_t p = grouping ? grouping->order[k] : k;
    const Tensor* target = out ? &(*out)[p] : nullptr;
    if (stacked) {
      STD_TORCH_CHECK(grads[p].has_value(), "gradsurgery: a stacked gradient cannot be None");
      builder.add_stacked(*grads[p], target);
    } else {
      builder.add(&grads[p], pieces, target);
    }
  }
  Rows rows = builder.take();
  if (count > 1) rows.group_pieces = std::move(grouping->first);
  return rows;
}

// B of gradients [B, ...], stacked [T, B, ...], and of outputs [B, ...]: the same in all of them.
inline int64_t count_samples(const Gradients& grads, bool stacked, const std::vector<Tensor>* out) {
  int64_t samples = -1;
  const auto add = [&samples](const Tensor& tensor, int64_t dimension) {
    STD_TORCH_CHECK(tensor.dim() > dimension && (samples < 0 || tensor.size(dimension) == samples),
                    "gradsurgery: surgery by sample takes tensors [B, ...] of one B");
    samples = tensor.size(dimension);
  };
  for (const std::optional<Tensor>& g : grads)
    if (g) add(*g, stacked ? 1 : 0);
  if (out)
    for (const Tensor& tensor : *out) add(tensor, 0);
  STD_TORCH_CHECK(samples >= 0, "gradsurgery: at least one gradient must be present");
  return samples;
}

// The rows of gradients and of the buffers that belong to them, in one order of coordinates.
struct BufferedRows {
  Rows grads;                 // a task without any gradient has null rows,
  Rows buffers;               // and its buffers have null rows, too
  std::vector<bool> present;  // [T]: which tasks have a gradient somewhere
};

// buffers: [P] tensors [T, ...] of float32 or float64, each with memory of its own.
inline BufferedRows buffered_rows_of(const std::vector<Tensor>& buffers, const Gradients& grads, int64_t tasks, bool stacked) {
  STD_TORCH_CHECK(tasks >= 1 && (stacked || grads.size() % tasks == 0), "gradsurgery: expected tasks * tensors gradients");
  const int64_t pieces = stacked ? grads.size() : grads.size() / tasks;
  STD_TORCH_CHECK(int64_t(buffers.size()) == pieces, "gradsurgery: buffers must have one tensor a gradient");
  RowsBuilder builder(int(2 * tasks), pieces, Coordinates::any);
  for (int64_t p = 0; p < pieces; ++p) {
    STD_TORCH_CHECK(size_of(scalar_of(buffers[p])) >= 4, "gradsurgery: buffers must be float32 or float64");
    builder.add_buffered(&grads[p], pieces, stacked, buffers[p]);
  }
  const Rows all = builder.take();
  BufferedRows result;
  result.present.assign(size_t(tasks), false);
  for (Rows* half : {&result.grads, &result.buffers}) {
    half->tasks = int(tasks);
    half->numel = all.numel;
    half->pieces = all.pieces;
    half->strided = all.strided;
    half->rows.resize(size_t(pieces * tasks));
  }
  for (int64_t p = 0; p < pieces; ++p)
    for (int t = 0; t < tasks; ++t) {
      result.grads.rows[p * tasks + t] = all.row(p, t);
      result.buffers.rows[p * tasks + t] = all.row(p, int(tasks) + t);
      if (all.row(p, t).data) result.present[t] = true;
    }
  for (int64_t p = 0; p < pieces; ++p)
    for (int t = 0; t < tasks; ++t)
      if (!result.present[t]) result.buffers.rows[p * tasks + t] = Row{};
  return result;
}

}  // namespace gradsurgery
