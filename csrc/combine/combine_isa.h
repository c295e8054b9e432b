// The weighted sum for one instruction set; see foreach_isa.h.
namespace gradsurgery {
namespace GS_ISA {

#include "../common/lanes.h"

// sum[k] (+)= sum_r w_r row_r[k] for R rows in one sweep.
template <class Store, int R, bool First>
inline void add_rows(const char* const* rows, const double* w, int64_t n, double* sum) {
  const auto at = [&](int64_t k, auto&& read_row) {
    Lanes total = First ? zeros() : load<StoreF64>(reinterpret_cast<const char*>(sum + k));
    for (int r = 0; r < R; ++r) add_scaled(total, w[r], read_row(rows[r]));
    store<StoreF64>(reinterpret_cast<char*>(sum + k), total);
  };
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) at(k, [k](const char* row) { return load<Store>(row + k * Store::bytes); });
  if (k < n) at(k, [k, n](const char* row) { return load_tail<Store>(row + k * Store::bytes, n - k); });
}

template <class Store, bool First>
inline void add_up_to_four(const char* const* rows, const double* w, int count, int64_t n, double* sum) {
  switch (count) {
    case 1:
      add_rows<Store, 1, First>(rows, w, n, sum);
      break;
    case 2:
      add_rows<Store, 2, First>(rows, w, n, sum);
      break;
    case 3:
      add_rows<Store, 3, First>(rows, w, n, sum);
      break;
    default:
      add_rows<Store, 4, First>(rows, w, n, sum);
      break;
  }
}

// sum[k] = sum_r w_r row_r[k] for one or more rows, in float64. `sum` has room for n rounded up to eight.
inline void combine_chunk(Scalar scalar, const char* const* rows, const double* w, int count, int64_t n, double* sum) {
  with_store(scalar, [&](auto store) {
    using Store = decltype(store);
    add_up_to_four<Store, true>(rows, w, count, n, sum);
    for (int r = 4; r < count; r += 4) add_up_to_four<Store, false>(rows + r, w + r, count - r, n, sum);
  });
}

// to[k] = sum[k] (+ to[k]), rounded to the output's type (16 bits by way of float32).
inline void narrow(const double* sum, int64_t n, bool accumulate, Scalar scalar, char* to) {
  with_store(scalar, [&](auto store) {
    using Store = decltype(store);
    int64_t k = 0;
    for (; k + kLanes <= n; k += kLanes) {
      Lanes x = load<StoreF64>(reinterpret_cast<const char*>(sum + k));
      if (accumulate) add_scaled(x, 1.0, load<Store>(to + k * Store::bytes));
      GS_ISA::store<Store>(to + k * Store::bytes, x);
    }
    if (k < n) {
      Lanes x = load_tail<StoreF64>(reinterpret_cast<const char*>(sum + k), n - k);
      if (accumulate) add_scaled(x, 1.0, load_tail<Store>(to + k * Store::bytes, n - k));
      store_tail<Store>(to + k * Store::bytes, x, n - k);
    }
  });
}

}  // namespace GS_ISA
}  // namespace gradsurgery
