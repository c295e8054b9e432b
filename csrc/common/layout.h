// Finds one order of coordinates in which as many rows of a piece as possible are dense. Gram and combine do not care which order
// that is, so contiguous, channels_last and any other permutation of a dense tensor are read where they lie.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "rows.h"

namespace gradsurgery {

struct Geometry {
  const int64_t* sizes;
  const int64_t* strides;
  int ndim;
};

// Dimensions of the reference from the largest stride to the smallest; those of size 1 carry no order and are left out.
inline std::vector<int> memory_order(const Geometry& g) {
  std::vector<int> order;
  for (int d = 0; d < g.ndim; ++d)
    if (g.sizes[d] != 1) order.push_back(d);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return g.strides[a] > g.strides[b]; });
  return order;
}

// Whether the tensor fills its memory without gaps or overlaps when read in this order.
inline bool is_dense_in(const Geometry& g, const std::vector<int>& order) {
  int64_t expected = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (g.strides[*d] != expected) return false;
    expected *= g.sizes[*d];
  }
  return true;
}

inline Strided strided_in(const Geometry& g, const std::vector<int>& order) {
  Strided result;
  for (int d : order) {
    result.sizes.push_back(g.sizes[d]);
    result.strides.push_back(g.strides[d]);
  }
  return result;
}

// The order of the dimensions, as shapes are written.
inline std::vector<int> dimension_order(const Geometry& g) {
  std::vector<int> order;
  for (int d = 0; d < g.ndim; ++d)
    if (g.sizes[d] != 1) order.push_back(d);
  return order;
}

// The order for a piece: that of its first dense tensor, else the order of the dimensions.
inline std::vector<int> common_order(const std::vector<Geometry>& tensors) {
  for (const Geometry& g : tensors) {
    std::vector<int> order = memory_order(g);
    if (is_dense_in(g, order)) return order;
  }
  return dimension_order(tensors.front());
}

// Likewise, among the orders in which dimension 0 is outermost, so that what belongs to one index of it lies together.
inline std::vector<int> samples_order(const std::vector<Geometry>& tensors) {
  for (const Geometry& g : tensors) {
    std::vector<int> order = memory_order(g);
    if ((g.sizes[0] == 1 || order.front() == 0) && is_dense_in(g, order)) return order;
  }
  return dimension_order(tensors.front());
}

}  // namespace gradsurgery
