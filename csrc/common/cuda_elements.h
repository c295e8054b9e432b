// The scalar types on the device: wide loads and stores, and conversions that are always written out.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>
#include <type_traits>

#include "cuda_compat.h"
#include "rows.h"

namespace gradsurgery {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Consecutive elements that are loaded and stored as one; 16 bytes are the widest access there is.
template <class Element, int Width>
struct alignas(sizeof(Element) * Width) Pack {
  Element at[Width];
};

template <class Element>
constexpr int kVector = 16 / int(sizeof(Element));

// Bytes on their way, as words: two-byte elements would take a register each while their load may still be skipped.
template <int Bytes>
using Raw = Pack<std::conditional_t<Bytes == 2, uint16_t, uint32_t>, Bytes == 2 ? 1 : Bytes / 4>;

template <int Bytes>
__device__ __forceinline__ Raw<Bytes> load_raw(const char* from) {
  GS_GLOBAL_ACCESS(from, Bytes);
  return *reinterpret_cast<const Raw<Bytes>*>(from);
}

template <class Element, int Width>
__device__ __forceinline__ Pack<Element, Width> unpack(const Raw<Width* int(sizeof(Element))>& raw) {
  Pack<Element, Width> pack;
  memcpy(&pack, &raw, sizeof raw);
  return pack;
}

template <class Element, int Width = 1>
__device__ __forceinline__ Pack<Element, Width> load_global(const char* from) {
  return unpack<Element, Width>(load_raw<Width* int(sizeof(Element))>(from));
}

template <class Element, int Width>
__device__ __forceinline__ void store_global(char* to, const Pack<Element, Width>& pack) {
  GS_GLOBAL_ACCESS(to, int(sizeof pack));
  *reinterpret_cast<Pack<Element, Width>*>(to) = pack;
}

// Half and BFloat16 convert through float32 in both directions, exactly on the way up.
template <class To, class From>
__device__ __forceinline__ To convert(From x) {
  if constexpr (std::is_same_v<To, From>)
    return x;
  else if constexpr (std::is_floating_point_v<To> && std::is_floating_point_v<From>)
    return static_cast<To>(x);
  else
    return static_cast<To>(static_cast<float>(x));
}

template <class Element>
struct Tag {
  using type = Element;
};

// Calls `use` with a Tag of the scalar's type. Kernels exist twice: Run = float for float32, bfloat16 and float16, and
// Run = double as soon as one tensor of the call is float64, so that the common one does not pay for float64's registers.
template <class Run, class Use>
__device__ __forceinline__ void with_element(Scalar scalar, Use use) {
  if constexpr (std::is_same_v<Run, double>) {
    if (scalar == Scalar::f64) {
      use(Tag<double>{});
      return;
    }
  }
  if (scalar == Scalar::f32)
    use(Tag<float>{});
  else if (scalar == Scalar::bf16)
    use(Tag<BFloat16>{});
  else
    use(Tag<Half>{});
}

}  // namespace gradsurgery
