// Eight doubles, however wide the machine's registers are, with loads and stores that convert. Included once per instruction set
// (see foreach_isa.h), inside namespace gradsurgery::GS_ISA, hence no include guard and no includes.
//
// Eight lanes on every instruction set keep the order of additions, and with it the bits, the same from SSE2 to AVX-512: a
// product of two float32, bfloat16 or float16 values is exact in float64, so a fused multiply-add changes nothing either.

constexpr int kNative = GS_NATIVE_BYTES / 8;  // doubles in one register
constexpr int kParts = kLanes / kNative;

typedef double NativeDouble __attribute__((vector_size(8 * kNative)));
typedef float NativeFloat __attribute__((vector_size(4 * kNative)));
typedef uint32_t NativeWord __attribute__((vector_size(4 * kNative)));
typedef uint16_t NativeShort __attribute__((vector_size(2 * kNative)));

struct Lanes {
  NativeDouble part[kParts];
};

template <class Vector>
inline Vector read(const void* from) {
  Vector v;
  __builtin_memcpy(&v, from, sizeof(Vector));
  return v;
}

template <class Vector>
inline void write(void* to, const Vector& v) {
  __builtin_memcpy(to, &v, sizeof(Vector));
}

inline Lanes zeros() {
  Lanes x;
  for (int p = 0; p < kParts; ++p) x.part[p] = NativeDouble{};
  return x;
}

inline void add_product(Lanes& sum, const Lanes& a, const Lanes& b) {
  for (int p = 0; p < kParts; ++p) sum.part[p] += a.part[p] * b.part[p];
}

inline void add_scaled(Lanes& sum, double w, const Lanes& a) {
  for (int p = 0; p < kParts; ++p) sum.part[p] += w * a.part[p];
}

// One conversion of one register each. GCC 12 splits its own __builtin_convertvector of wide vectors into halves.
#if defined(GS_F16C) && GS_NATIVE_BYTES == 64
// (With a full mask, for the plain forms warn of an uninitialised value inside GCC's own header.)
inline NativeDouble to_double(NativeFloat x) { return (NativeDouble)_mm512_maskz_cvtps_pd(0xFF, (__m256)x); }
inline NativeFloat to_float(NativeDouble x) { return (NativeFloat)_mm512_maskz_cvtpd_ps(0xFF, (__m512d)x); }
inline NativeWord to_word(NativeShort x) { return (NativeWord)_mm256_cvtepu16_epi32((__m128i)x); }
#elif defined(GS_F16C)
inline NativeDouble to_double(NativeFloat x) { return (NativeDouble)_mm256_cvtps_pd((__m128)x); }
inline NativeFloat to_float(NativeDouble x) { return (NativeFloat)_mm256_cvtpd_ps((__m256d)x); }
inline NativeWord to_word(NativeShort x) { return (NativeWord)_mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i*)&x)); }
#else
inline NativeDouble to_double(NativeFloat x) { return __builtin_convertvector(x, NativeDouble); }
inline NativeFloat to_float(NativeDouble x) { return __builtin_convertvector(x, NativeFloat); }
inline NativeWord to_word(NativeShort x) { return __builtin_convertvector(x, NativeWord); }
#endif

// float16 <-> float32 without F16C. The multiplication restores the exponent's bias and normalises subnormals at once.
inline float half_to_float(uint16_t half) {
  uint32_t bits = uint32_t(half & 0x7FFFu) << 13;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  value *= 0x1p112f;
  __builtin_memcpy(&bits, &value, 4);
  if ((half & 0x7C00u) == 0x7C00u) bits |= 0x7F800000u;
  bits |= uint32_t(half & 0x8000u) << 16;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline uint16_t float_to_half(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
  bits &= 0x7FFFFFFFu;
  if (bits > 0x7F800000u) return sign | 0x7E00u;   // NaN
  if (bits >= 0x477FF000u) return sign | 0x7C00u;  // rounds to infinity
  if (bits < 0x38800000u) {                        // subnormal in float16: let the adder round
    float magnitude;
    __builtin_memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    __builtin_memcpy(&bits, &magnitude, 4);
    return sign | uint16_t(bits - 0x3F000000u);
  }
  bits += 0xFFFu + ((bits >> 13) & 1u);  // nearest, ties to even
  return sign | uint16_t((bits - 0x38000000u) >> 13);
}

// Storage: how one scalar type lies in memory, and how a register of it becomes doubles and comes back.
struct StoreF64 {
  static constexpr int bytes = 8;
  static NativeDouble load(const char* from) { return read<NativeDouble>(from); }
  static void store(char* to, NativeDouble x) { write(to, x); }
};

struct StoreF32 {
  static constexpr int bytes = 4;
  static NativeDouble load(const char* from) { return to_double(read<NativeFloat>(from)); }
  static void store(char* to, NativeDouble x) { write(to, to_float(x)); }
};

struct StoreBF16 {
  static constexpr int bytes = 2;
  static NativeDouble load(const char* from) {
    const NativeWord bits = to_word(read<NativeShort>(from)) << 16;
    return to_double(read<NativeFloat>(&bits));
  }
  static void store(char* to, NativeDouble x) {
    const NativeFloat rounded = to_float(x);
    const NativeWord bits = read<NativeWord>(&rounded);
    const NativeWord nearest = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const NativeWord nan = (bits >> 16) | 0x40u;
    const auto is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
    write(to, __builtin_convertvector(is_nan ? nan : nearest, NativeShort));
  }
};

struct StoreF16 {
  static constexpr int bytes = 2;
  static NativeDouble load(const char* from) {
#if defined(GS_F16C) && GS_NATIVE_BYTES == 64
    const __m256 x = _mm256_cvtph_ps(read<__m128i>(from));
    return to_double(read<NativeFloat>(&x));
#elif defined(GS_F16C)
    const __m128 x = _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
    return to_double(read<NativeFloat>(&x));
#else
    uint16_t half[kNative];
    __builtin_memcpy(half, from, sizeof half);
    NativeDouble x;
    for (int l = 0; l < kNative; ++l) x[l] = half_to_float(half[l]);
    return x;
#endif
  }
  static void store(char* to, NativeDouble x) {
    const NativeFloat rounded = to_float(x);
#if defined(GS_F16C) && GS_NATIVE_BYTES == 64
    write(to, _mm256_cvtps_ph(read<__m256>(&rounded), _MM_FROUND_TO_NEAREST_INT));
#elif defined(GS_F16C)
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_cvtps_ph(read<__m128>(&rounded), _MM_FROUND_TO_NEAREST_INT));
#else
    uint16_t half[kNative];
    for (int l = 0; l < kNative; ++l) half[l] = float_to_half(rounded[l]);
    __builtin_memcpy(to, half, sizeof half);
#endif
  }
};

template <class Store>
inline Lanes load(const char* from) {
  Lanes x;
  for (int p = 0; p < kParts; ++p) x.part[p] = Store::load(from + p * kNative * Store::bytes);
  return x;
}

template <class Store>
inline void store(char* to, const Lanes& x) {
  for (int p = 0; p < kParts; ++p) Store::store(to + p * kNative * Store::bytes, x.part[p]);
}

// The last 1..7 elements, padded with zeros.
template <class Store>
inline Lanes load_tail(const char* from, int64_t count) {
  char padded[kLanes * Store::bytes] = {};
  __builtin_memcpy(padded, from, size_t(count) * Store::bytes);
  return load<Store>(padded);
}

template <class Store>
inline void store_tail(char* to, const Lanes& x, int64_t count) {
  char padded[kLanes * Store::bytes];
  store<Store>(padded, x);
  __builtin_memcpy(to, padded, size_t(count) * Store::bytes);
}

// Calls `use` with the storage type of a scalar.
template <class Use>
inline void with_store(Scalar scalar, Use use) {
  switch (scalar) {
    case Scalar::f64:
      use(StoreF64{});
      break;
    case Scalar::f32:
      use(StoreF32{});
      break;
    case Scalar::bf16:
      use(StoreBF16{});
      break;
    case Scalar::f16:
      use(StoreF16{});
      break;
  }
}
