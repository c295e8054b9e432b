// The updates of one row's buffer for one instruction set; see foreach_isa.h.
namespace gradsurgery {
namespace GS_ISA {

#include "../common/lanes.h"

inline NativeDouble square_root(NativeDouble x) {
#if GS_DISPATCH_X86 && GS_NATIVE_BYTES == 64
  return (NativeDouble)_mm512_maskz_sqrt_pd(0xFF, (__m512d)x);
#elif GS_DISPATCH_X86 && GS_NATIVE_BYTES == 32
  return (NativeDouble)_mm256_sqrt_pd((__m256d)x);
#elif GS_DISPATCH_X86
  return (NativeDouble)_mm_sqrt_pd((__m128d)x);
#else
  for (int l = 0; l < kNative; ++l) x[l] = std::sqrt(x[l]);
  return x;
#endif
}

// As it will be when it was stored.
template <class Store>
inline NativeDouble rounded(NativeDouble x) {
  if constexpr (Store::bytes == 8)
    return x;
  else
    return to_double(to_float(x));
}

// Calls `change(g, y)` for eight coordinates at a time; y is stored. A null gradient reads as zeros. The next chunk of this row
// is fetched on the way: it is read after those of the other rows, which are more streams than the hardware follows by itself.
// Past the end of a row that touches nothing.
template <class StoreG, class StoreY, class Change>
inline void change_row(const char* g, char* y, int64_t n, Change change) {
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes) {
    if (g) __builtin_prefetch(g + (k + kChunk) * StoreG::bytes);
    __builtin_prefetch(y + (k + kChunk) * StoreY::bytes, 1);
    store<StoreY>(y + k * StoreY::bytes,
                  change(g ? load<StoreG>(g + k * StoreG::bytes) : zeros(), load<StoreY>(y + k * StoreY::bytes)));
  }
  if (k < n)
    store_tail<StoreY>(
        y + k * StoreY::bytes,
        change(g ? load_tail<StoreG>(g + k * StoreG::bytes, n - k) : zeros(), load_tail<StoreY>(y + k * StoreY::bytes, n - k)),
        n - k);
}

template <class Change>
inline void with_stores(Scalar gradient, Scalar buffer, Change change) {
  with_store(gradient, [&](auto store_g) {
    if (buffer == Scalar::f64)
      change(store_g, StoreF64{});
    else
      change(store_g, StoreF32{});
  });
}

// y <- y + rate (scale g - y). Adds NaN to `broken` for a new value that is not finite, else 0.
inline void ema_row(Scalar gradient, const char* g, Scalar buffer, char* y, int64_t n, double scale, double rate,
                    double* broken /* [kLanes] */) {
  Lanes found = load<StoreF64>(reinterpret_cast<const char*>(broken));
  with_stores(gradient, buffer, [&](auto store_g, auto store_y) {
    using StoreY = decltype(store_y);
    change_row<decltype(store_g), StoreY>(g, y, n, [&](const Lanes& x, const Lanes& old) {
      Lanes changed;
      for (int p = 0; p < kParts; ++p) {
        changed.part[p] = rounded<StoreY>(old.part[p] + rate * (scale * x.part[p] - old.part[p]));
        const NativeDouble zero = changed.part[p] - changed.part[p];  // NaN unless finite
        found.part[p] += zero;
        changed.part[p] = zero == 0.0 ? changed.part[p] : old.part[p];
      }
      return changed;
    });
  });
  store<StoreF64>(reinterpret_cast<char*>(broken), found);
}

// sqrt(r^2 + g^2), r >= 0. In `wide` without squares that leave the range of float64, as on CUDA; those of float32 do not.
template <bool wide>
inline NativeDouble root_of_squares(NativeDouble r, NativeDouble g) {
  if constexpr (!wide) return square_root(r * r + g * g);
  const NativeDouble size = g < 0.0 ? -g : g, large = r > size ? r : size, small = r > size ? size : r;
  const NativeDouble ratio = small / large, root = large * square_root(1.0 + ratio * ratio);
  return large == 0.0 ? large : root;
}

// r <- sqrt(r^2 + g^2), and risk += g^2 / r in each lane, NaN for a new value that is not finite.
inline void risk_row(Scalar gradient, const char* g, Scalar buffer, char* r, int64_t n, double* risk /* [kLanes] */) {
  Lanes sum = load<StoreF64>(reinterpret_cast<const char*>(risk));
  with_stores(gradient, buffer, [&](auto store_g, auto store_r) {
    using StoreR = decltype(store_r);
    change_row<decltype(store_g), StoreR>(g, r, n, [&](const Lanes& x, const Lanes& old) {
      Lanes changed;
      for (int p = 0; p < kParts; ++p) {
        const NativeDouble root =
            root_of_squares < decltype(store_g)::bytes == 8 || StoreR::bytes == 8 > (old.part[p], x.part[p]);
        changed.part[p] = rounded<StoreR>(root);
        const NativeDouble zero = changed.part[p] - changed.part[p];
        const NativeDouble ratio = x.part[p] * (x.part[p] / root);
        sum.part[p] += zero + (root == 0.0 ? zero : ratio);
        changed.part[p] = zero == 0.0 ? changed.part[p] : old.part[p];
      }
      return changed;
    });
  });
  store<StoreF64>(reinterpret_cast<char*>(risk), sum);
}

}  // namespace GS_ISA
}  // namespace gradsurgery
