// The Gram loop for one instruction set; see foreach_isa.h.
namespace gradsurgery {
namespace GS_ISA {

#include "../common/lanes.h"

// R x C dot products at once, so that every loaded coordinate is used R or C times from registers.
template <class Store, int R, int C>
inline void gram_tile(const char* const* a /* [R] */, const char* const* b /* [C] */, int64_t n, double* out /* [R, C] */) {
  Lanes sum[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sum[r][c] = zeros();
  const auto accumulate = [&](auto&& read_row) {
    Lanes y[C];
    for (int c = 0; c < C; ++c) y[c] = read_row(b[c]);
    for (int r = 0; r < R; ++r) {
      const Lanes x = read_row(a[r]);
      for (int c = 0; c < C; ++c) add_product(sum[r][c], x, y[c]);
    }
  };
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) accumulate([k](const char* row) { return load<Store>(row + k * Store::bytes); });
  if (k < n) accumulate([k, n](const char* row) { return load_tail<Store>(row + k * Store::bytes, n - k); });
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) out[r * C + c] = horizontal_sum(sum[r][c]);
}

// The upper triangle of R rows with themselves.
template <class Store, int R>
inline void gram_triangle(const char* const* a /* [R] */, int64_t n, double* out /* [R, R] */) {
  Lanes sum[R][R];
  for (int r = 0; r < R; ++r)
    for (int c = r; c < R; ++c) sum[r][c] = zeros();
  const auto accumulate = [&](auto&& read_row) {
    Lanes x[R];
    for (int r = 0; r < R; ++r) x[r] = read_row(a[r]);
    for (int r = 0; r < R; ++r)
      for (int c = r; c < R; ++c) add_product(sum[r][c], x[r], x[c]);
  };
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) accumulate([k](const char* row) { return load<Store>(row + k * Store::bytes); });
  if (k < n) accumulate([k, n](const char* row) { return load_tail<Store>(row + k * Store::bytes, n - k); });
  for (int r = 0; r < R; ++r)
    for (int c = r; c < R; ++c) out[r * R + c] = horizontal_sum(sum[r][c]);
}

template <class Store>
inline void gram_rows(const char* const* rows, int count, int64_t n, double* sums /* [count, count], upper */) {
  double tile[GS_TILE * GS_TILE];
  const auto add = [&](int i, int j, int height, int width) {
    for (int r = 0; r < height; ++r)
      for (int c = i == j ? r : 0; c < width; ++c) sums[(i + r) * count + j + c] += tile[r * width + c];
  };
  for (int i = 0; i < count; i += GS_TILE) {
    const int height = count - i < GS_TILE ? count - i : GS_TILE;
    switch (height) {
      case 1:
        gram_triangle<Store, 1>(rows + i, n, tile);
        break;
      case 2:
        gram_triangle<Store, 2>(rows + i, n, tile);
        break;
#if GS_TILE == 4
      case 3:
        gram_triangle<Store, 3>(rows + i, n, tile);
        break;
      case 4:
        gram_triangle<Store, 4>(rows + i, n, tile);
        break;
#endif
    }
    add(i, i, height, height);
    for (int j = i + GS_TILE; j < count; j += GS_TILE) {  // here height == GS_TILE
      const int width = count - j < GS_TILE ? count - j : GS_TILE;
      switch (width) {
        case 1:
          gram_tile<Store, GS_TILE, 1>(rows + i, rows + j, n, tile);
          break;
        case 2:
          gram_tile<Store, GS_TILE, 2>(rows + i, rows + j, n, tile);
          break;
#if GS_TILE == 4
        case 3:
          gram_tile<Store, GS_TILE, 3>(rows + i, rows + j, n, tile);
          break;
        case 4:
          gram_tile<Store, GS_TILE, 4>(rows + i, rows + j, n, tile);
          break;
#endif
      }
      add(i, j, height, width);
    }
  }
}

// sums[i, j] += <rows[i], rows[j]> for i <= j, over n coordinates of one scalar type.
inline void gram_chunk(Scalar scalar, const char* const* rows, int count, int64_t n, double* sums) {
  with_store(scalar, [&](auto store) { gram_rows<decltype(store)>(rows, count, n, sums); });
}

// Widens n elements to float64, for pieces whose rows differ in type.
inline void widen(Scalar scalar, const char* from, int64_t n, double* to) {
  with_store(scalar, [&](auto store) {
    using Store = decltype(store);
    int64_t k = 0;
    for (; k + kLanes <= n; k += kLanes)
      GS_ISA::store<StoreF64>(reinterpret_cast<char*>(to + k), load<Store>(from + k * Store::bytes));
    if (k < n) store_tail<StoreF64>(reinterpret_cast<char*>(to + k), load_tail<Store>(from + k * Store::bytes, n - k), n - k);
  });
}

}  // namespace GS_ISA
}  // namespace gradsurgery
