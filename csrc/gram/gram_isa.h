// The Gram loop for one instruction set; see foreach_isa.h.
namespace gradsurgery {
namespace GS_ISA {

#include "../common/lanes.h"

// R x C dot products at once, so that every loaded coordinate is used R or C times from registers. Lanes go on from their cells,
// so that the order of additions, and with it the bits of K, depends neither on the size of a tile nor on that of a strip.
template <class Store, int R, int C>
inline void gram_tile(const char* const* a /* [R] */, const char* const* b /* [C] */, int64_t n, double* sums,
                      int64_t stride /* of a row of sums, in cells */) {
  const auto cell = [&](int r, int c) { return reinterpret_cast<char*>(sums + (r * stride + c) * kLanes); };
  Lanes sum[R][C];
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) sum[r][c] = load<StoreF64>(cell(r, c));
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
    for (int c = 0; c < C; ++c) store<StoreF64>(cell(r, c), sum[r][c]);
}

// The upper triangle of R rows with themselves.
template <class Store, int R>
inline void gram_triangle(const char* const* a /* [R] */, int64_t n, double* sums, int64_t stride) {
  const auto cell = [&](int r, int c) { return reinterpret_cast<char*>(sums + (r * stride + c) * kLanes); };
  Lanes sum[R][R];
  for (int r = 0; r < R; ++r)
    for (int c = r; c < R; ++c) sum[r][c] = load<StoreF64>(cell(r, c));
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
    for (int c = r; c < R; ++c) store<StoreF64>(cell(r, c), sum[r][c]);
}

// The upper triangle of all rows, tile by tile.
template <class Store>
inline void gram_rows(const char* const* rows, int count, int64_t n, double* sums /* [count, count, kLanes] */) {
  const auto cell = [&](int i, int j) { return sums + (int64_t(i) * count + j) * kLanes; };
  for (int i = 0; i < count; i += GS_TILE) {
    switch (count - i) {
      case 1:
        gram_triangle<Store, 1>(rows + i, n, cell(i, i), count);
        break;
#if GS_TILE == 4
      case 2:
        gram_triangle<Store, 2>(rows + i, n, cell(i, i), count);
        break;
      case 3:
        gram_triangle<Store, 3>(rows + i, n, cell(i, i), count);
        break;
#endif
      default:
        gram_triangle<Store, GS_TILE>(rows + i, n, cell(i, i), count);
        break;
    }
    for (int j = i + GS_TILE; j < count; j += GS_TILE) {  // here GS_TILE rows are left from i on
      switch (count - j) {
        case 1:
          gram_tile<Store, GS_TILE, 1>(rows + i, rows + j, n, cell(i, j), count);
          break;
#if GS_TILE == 4
        case 2:
          gram_tile<Store, GS_TILE, 2>(rows + i, rows + j, n, cell(i, j), count);
          break;
        case 3:
          gram_tile<Store, GS_TILE, 3>(rows + i, rows + j, n, cell(i, j), count);
          break;
#endif
        default:
          gram_tile<Store, GS_TILE, GS_TILE>(rows + i, rows + j, n, cell(i, j), count);
          break;
      }
    }
  }
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

// sums[i, j, lane] += the products of rows i <= j in each lane, over n coordinates of one scalar type.
inline void gram_chunk(Scalar scalar, const char* const* rows, int count, int64_t n, double* sums,
                       double* packed /* [count, kStrip] */, const char** strips /* [count] */) {
  if (count <= GS_TILE) {  // a single tile: read where the gradients lie
    with_store(scalar, [&](auto store) { gram_rows<decltype(store)>(rows, count, n, sums); });
    return;
  }
  // Several tiles would convert every row several times, and rows a power of two apart would evict each other from the cache:
  // widen a strip of every row side by side, which stays in the first-level cache.
  const int64_t bytes = size_of(scalar);
  for (int r = 0; r < count; ++r) strips[r] = reinterpret_cast<const char*>(packed + r * kStrip);
  for (int64_t at = 0; at < n; at += kStrip) {
    const int64_t width = n - at < kStrip ? n - at : kStrip;
    for (int r = 0; r < count; ++r) {
      const char* from = rows[r] + at * bytes;
      // More streams than the hardware follows by itself. Past the end of a row this touches nothing.
      for (int64_t line = 0; line < kStrip * bytes; line += 64) __builtin_prefetch(from + 2 * kStrip * bytes + line);
      widen(scalar, from, width, packed + r * kStrip);
    }
    gram_rows<StoreF64>(strips, count, width, sums);
  }
}

}  // namespace GS_ISA
}  // namespace gradsurgery
