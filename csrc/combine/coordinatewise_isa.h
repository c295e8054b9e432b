// The coordinate-wise rules for one instruction set; see foreach_isa.h.
namespace gradsurgery {
namespace GS_ISA {

#include "../common/lanes.h"

// Calls at(k, read, n) for eight coordinates at a time, n of which count; read(store, from) loads them from row or buffer `from`.
template <class At>
inline void for_each_eight(int64_t n, At at) {
  int64_t k = 0;
  for (; k + kLanes <= n; k += kLanes)
    at(k, [k](auto store, const void* from) {
      return load<decltype(store)>(static_cast<const char*>(from) + k * decltype(store)::bytes);
    });
  if (k < n)
    at(k, [k, n](auto store, const void* from) {
      return load_tail<decltype(store)>(static_cast<const char*>(from) + k * decltype(store)::bytes, n - k);
    });
}

// Calls use(row, values) for every row, in order; four loads at once, which a loop over single rows would wait for.
template <class Store, class Read, class Use>
inline void for_each_row(const char* const* rows, int count, Read read, Use use) {
  int r = 0;
  for (; r + 4 <= count; r += 4) {
    const Lanes x[4] = {read(Store{}, rows[r]), read(Store{}, rows[r + 1]), read(Store{}, rows[r + 2]),
                        read(Store{}, rows[r + 3])};
    for (int i = 0; i < 4; ++i) use(r + i, x[i]);
  }
  for (; r < count; ++r) use(r, read(Store{}, rows[r]));
}

// One instruction each where there is one. Where x is not a number, both give y.
#if GS_DISPATCH_X86 && GS_NATIVE_BYTES == 64
inline NativeDouble smaller(NativeDouble x, NativeDouble y) {
  return (NativeDouble)_mm512_maskz_min_pd(0xFF, (__m512d)x, (__m512d)y);
}
inline NativeDouble larger(NativeDouble x, NativeDouble y) {
  return (NativeDouble)_mm512_maskz_max_pd(0xFF, (__m512d)x, (__m512d)y);
}
#elif GS_DISPATCH_X86 && GS_NATIVE_BYTES == 32
inline NativeDouble smaller(NativeDouble x, NativeDouble y) { return (NativeDouble)_mm256_min_pd((__m256d)x, (__m256d)y); }
inline NativeDouble larger(NativeDouble x, NativeDouble y) { return (NativeDouble)_mm256_max_pd((__m256d)x, (__m256d)y); }
#elif GS_DISPATCH_X86
inline NativeDouble smaller(NativeDouble x, NativeDouble y) { return (NativeDouble)_mm_min_pd((__m128d)x, (__m128d)y); }
inline NativeDouble larger(NativeDouble x, NativeDouble y) { return (NativeDouble)_mm_max_pd((__m128d)x, (__m128d)y); }
#else
inline NativeDouble smaller(NativeDouble x, NativeDouble y) { return x < y ? x : y; }
inline NativeDouble larger(NativeDouble x, NativeDouble y) { return x > y ? x : y; }
#endif

// Products of the lower halves of 64-bit lanes.
typedef uint64_t NativeWide __attribute__((vector_size(8 * kNative)));
#if GS_DISPATCH_X86 && GS_NATIVE_BYTES == 64
inline NativeWide multiply_words(NativeWide a, NativeWide b) {
  return (NativeWide)_mm512_maskz_mul_epu32(0xFF, (__m512i)a, (__m512i)b);
}
#elif GS_DISPATCH_X86 && GS_NATIVE_BYTES == 32
inline NativeWide multiply_words(NativeWide a, NativeWide b) { return (NativeWide)_mm256_mul_epu32((__m256i)a, (__m256i)b); }
#elif GS_DISPATCH_X86
inline NativeWide multiply_words(NativeWide a, NativeWide b) { return (NativeWide)_mm_mul_epu32((__m128i)a, (__m128i)b); }
#else
inline NativeWide multiply_words(NativeWide a, NativeWide b) { return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu); }
#endif

// The lower half of each lane as a number in (0, 1), in the middle of its 2^-32.
inline NativeDouble to_uniform(NativeWide word) {
  const NativeWide bits = (word & 0xFFFFFFFFu) | 0x4330000000000000u;  // 2^52 + word
  return (read<NativeDouble>(&bits) - (0x1p52 - 0.5)) * 0x1p-32;
}

// Uniform numbers in (0, 1) with 32 bits for the n coordinates from `first` on, four from each Philox block. The buffer has room
// for kDrawn numbers; returns where in it they begin.
constexpr int64_t kDrawn = kChunk + 8 * kLanes;

inline const double* draw_chunk(int64_t seed, int64_t step, int64_t first, int64_t n, double* buffer) {
  const uint64_t start = uint64_t(first) / 4;
  NativeWide lane = {};
  for (int b = 0; b < kNative; ++b) lane[b] = uint64_t(b);
  const NativeWide zero = {}, m0 = zero + 0xD2511F53u, m1 = zero + 0xCD9E8D57u;
  double* to = buffer;
  for (uint64_t block = start; 4 * block < uint64_t(first + n); block += kNative, to += 4 * kNative) {
    uint32_t k0 = uint32_t(uint64_t(seed)), k1 = uint32_t(uint64_t(seed) >> 32);
    // One block a lane. Only the lower halves count; what is above is left there.
    NativeWide c0 = zero + uint64_t(step), c1 = c0 >> 32, c2 = lane + block, c3 = c2 >> 32;
    for (int round = 0; round < 10; ++round) {  // as in philox_block
      const NativeWide p0 = multiply_words(m0, c0), p1 = multiply_words(m1, c2);
      c0 = (p1 >> 32) ^ c1 ^ uint64_t(k0);
      c1 = p1;
      c2 = (p0 >> 32) ^ c3 ^ uint64_t(k1);
      c3 = p0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const NativeDouble u[4] = {to_uniform(c0), to_uniform(c1), to_uniform(c2), to_uniform(c3)};
    for (int b = 0; b < kNative; ++b)
      for (int word = 0; word < 4; ++word) to[4 * b + word] = u[word][b];
  }
  return buffer + uint64_t(first) % 4;
}

// With p the sum of the positive values and q that of the others: p where P = p / (p - q) > U, q where P < U; compared without
// the division. Of what is dropped, the share `leak`. x - x is NaN for what is not finite, and 0 else.
template <class Store, bool Leak>
inline void graddrop_rows(const char* const* rows, const double* leak, int count, int64_t n, const double* u, double* sum) {
  const NativeDouble zero = {};
  for_each_eight(n, [&](int64_t k, auto read) {
    Lanes p = zeros(), q = zeros(), leaked_p = zeros(), leaked_q = zeros();
    for_each_row<Store>(rows, count, read, [&](int r, const Lanes& x) {
      for (int l = 0; l < kParts; ++l) {
        const NativeDouble positive = larger(x.part[l], zero), other = smaller(zero, x.part[l]);
        p.part[l] += positive;
        q.part[l] += other;
        if constexpr (Leak) {
          leaked_p.part[l] += leak[r] * positive;
          leaked_q.part[l] += leak[r] * other;
        }
      }
    });
    const Lanes uniform = read(StoreF64{}, u);
    Lanes result;
    for (int l = 0; l < kParts; ++l) {
      const NativeDouble U = uniform.part[l], P = p.part[l], Q = q.part[l], up = P * (1.0 - U), down = -Q * U;
      const NativeDouble neither = leaked_p.part[l] + leaked_q.part[l];
      const NativeDouble kept = up > down ? P + leaked_q.part[l] : up < down ? Q + leaked_p.part[l] : neither;
      result.part[l] = kept + ((P - P) + (Q - Q));
    }
    store<StoreF64>(reinterpret_cast<char*>(sum + k), result);
  });
}

inline void graddrop_chunk(Scalar scalar, const char* const* rows, const double* leak /* [count] or null */, int count, int64_t n,
                           const double* u, double* sum) {
  with_store(scalar, [&](auto store) {
    using Store = decltype(store);
    leak ? graddrop_rows<Store, true>(rows, leak, count, n, u, sum) : graddrop_rows<Store, false>(rows, leak, count, n, u, sum);
  });
}

// The sum over the rows divided by `divisor`, where |sum of the signs| >= needed, and 0 elsewhere.
inline void sign_agreement_chunk(Scalar scalar, const char* const* rows, int count, int64_t n, double needed, double divisor,
                                 double* sum) {
  const NativeDouble zero = {}, one = zero + 1.0, enough = zero + needed, scale = zero + divisor;
  with_store(scalar, [&](auto storage) {
    for_each_eight(n, [&](int64_t k, auto read) {
      Lanes total = zeros(), votes = zeros();
      for_each_row<decltype(storage)>(rows, count, read, [&](int, const Lanes& x) {
        for (int l = 0; l < kParts; ++l) {
          total.part[l] += x.part[l];
          votes.part[l] += x.part[l] > zero ? one : x.part[l] < zero ? -one : zero;
        }
      });
      Lanes result;
      for (int l = 0; l < kParts; ++l) {
        const NativeDouble v = votes.part[l], x = total.part[l];
        const NativeDouble agreeing = larger(v, -v) >= enough ? x / scale : zero;
        result.part[l] = agreeing + (x - x);
      }
      store<StoreF64>(reinterpret_cast<char*>(sum + k), result);
    });
  });
}

inline void exchange(Lanes& a, Lanes& b) {
  for (int l = 0; l < kParts; ++l) {
    const NativeDouble x = a.part[l], y = b.part[l];
    a.part[l] = smaller(x, y);
    b.part[l] = larger(y, x);
  }
}

template <int Count, size_t... I>
inline void sort_lanes(Lanes (&x)[Count], std::index_sequence<I...>) {
  (exchange(x[kNetwork<Count>.low[I]], x[kNetwork<Count>.high[I]]), ...);
}

// Adds x - x: NaN for what is not finite, and 0 else.
inline void poison_by(Lanes& poison, const Lanes& x) {
  for (int l = 0; l < kParts; ++l) poison.part[l] += x.part[l] - x.part[l];
}

inline void add_lanes(Lanes& sum, const Lanes& x) {
  for (int l = 0; l < kParts; ++l) sum.part[l] += x.part[l];
}

inline void write_mean(const Lanes& total, double divisor, const Lanes& poison, double* sum) {
  Lanes result;
  for (int l = 0; l < kParts; ++l) result.part[l] = total.part[l] / divisor + poison.part[l];
  store<StoreF64>(reinterpret_cast<char*>(sum), result);
}

// The sorted values first..last-1 are averaged, in ascending order. Up to kFewRows they are read and sorted in registers; up to
// kRegisterRows sorted in registers after all were read; beyond, by a network that was made at run time.
constexpr int kFewRows = 8, kRegisterRows = 32;

template <class Store, int Count>
inline void average_few(const char* const* rows, int64_t n, Middle middle, double* sum) {
  for_each_eight(n, [&](int64_t k, auto read) {
    Lanes x[Count], poison = zeros(), total = zeros();
    for (int r = 0; r < Count; ++r) {
      x[r] = read(Store{}, rows[r]);
      poison_by(poison, x[r]);
    }
    sort_lanes(x, std::make_index_sequence<size_t(Network<Count>::size)>());
    for (int r = 0; r < Count; ++r)
      if (r >= middle.first && r < middle.last) add_lanes(total, x[r]);
    write_mean(total, middle.last - middle.first, poison, sum + k);
  });
}

constexpr int kEight = kLanes * 8;  // bytes

template <int Count>
inline void sort_count(char* values) {
  Lanes x[Count];
  for (int r = 0; r < Count; ++r) x[r] = load<StoreF64>(values + r * kEight);
  sort_lanes(x, std::make_index_sequence<size_t(Network<Count>::size)>());
  for (int r = 0; r < Count; ++r) store<StoreF64>(values + r * kEight, x[r]);
}

using Sort = void (*)(char* values /* [count] times eight doubles */);

template <size_t... I>
inline Sort sort_of(int count, std::index_sequence<I...>) {
  static constexpr Sort sorts[] = {sort_count<kFewRows + 1 + int(I)>...};
  return sorts[count - kFewRows - 1];
}

inline void sort_by(const Exchange* network, size_t size, char* values) {
  for (size_t e = 0; e < size; ++e) {
    char *const low = values + network[e].low * kEight, *const high = values + network[e].high * kEight;
    Lanes a = load<StoreF64>(low), b = load<StoreF64>(high);
    exchange(a, b);
    store<StoreF64>(low, a);
    store<StoreF64>(high, b);
  }
}

template <class Store>
inline void average_many(const char* const* rows, int count, int64_t n, Middle middle, const Exchange* network, size_t size,
                         char* values, double* sum) {
  const Sort sort =
      count <= kRegisterRows ? sort_of(count, std::make_index_sequence<size_t(kRegisterRows - kFewRows)>()) : nullptr;
  for_each_eight(n, [&](int64_t k, auto read) {
    Lanes poison = zeros(), total = zeros();
    for (int r = 0; r < count; ++r) {
      const Lanes x = read(Store{}, rows[r]);
      poison_by(poison, x);
      store<StoreF64>(values + r * kEight, x);
    }
    sort ? sort(values) : sort_by(network, size, values);
    for (int r = middle.first; r < middle.last; ++r) add_lanes(total, load<StoreF64>(values + r * kEight));
    write_mean(total, middle.last - middle.first, poison, sum + k);
  });
}

template <class Store, int Count>
inline bool average_up_to(const char* const* rows, int count, int64_t n, Middle middle, double* sum) {
  if constexpr (Count > 0) {
    if (count < Count) return average_up_to<Store, Count - 1>(rows, count, n, middle, sum);
    if (count > Count) return false;
    average_few<Store, Count>(rows, n, middle, sum);
    return true;
  } else {
    return false;
  }
}

// `network` sorts `count` values; `values` has room for eight doubles a row.
inline void middle_chunk(Scalar scalar, const char* const* rows, int count, int64_t n, Middle middle, const Exchange* network,
                         size_t size, char* values, double* sum) {
  with_store(scalar, [&](auto store) {
    using Store = decltype(store);
    if (average_up_to<Store, kFewRows>(rows, count, n, middle, sum)) return;
    average_many<Store>(rows, count, n, middle, network, size, values, sum);
  });
}

}  // namespace GS_ISA
}  // namespace gradsurgery
