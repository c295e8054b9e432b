// Which instruction set the CPU kernels run with: the best this machine has, or a narrower one on request (tests, bug reports).
#pragma once

#include <cstdlib>
#include <string>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(_MSC_VER)
#define GS_DISPATCH_X86 1
#include <immintrin.h>
#else
#define GS_DISPATCH_X86 0
#endif

namespace gradsurgery {

enum class Isa : int { baseline, avx2, avx512 };

inline Isa detect_isa() {
#if GS_DISPATCH_X86
  __builtin_cpu_init();
  // The features of x86-64-v3 and x86-64-v4 that the kernels use.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
      __builtin_cpu_supports("bmi2")) {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
      return Isa::avx512;
    return Isa::avx2;
  }
#endif
  return Isa::baseline;
}

inline const char* isa_name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline"; }

// GRADSURGERY_CPU_CAPABILITY=baseline|avx2|avx512 lowers the choice; a name this machine cannot run is ignored. The Python side
// checks the name and reports what is in use.
inline Isa current_isa() {
  static const Isa chosen = [] {
    const Isa best = detect_isa();
    const char* wish = std::getenv("GRADSURGERY_CPU_CAPABILITY");
    if (wish)
      for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
        if (std::string(wish) == isa_name(isa) && isa <= best) return isa;
    return best;
  }();
  return chosen;
}

// One kernel in its three builds.
template <class Function>
Function pick(Function baseline, Function avx2, Function avx512) {
  switch (current_isa()) {
    case Isa::avx512:
      return avx512;
    case Isa::avx2:
      return avx2;
    default:
      return baseline;
  }
}

#if GS_DISPATCH_X86
#define GS_PICK(name) ::gradsurgery::pick(&baseline::name, &avx2::name, &avx512::name)
#else
#define GS_PICK(name) (&baseline::name)
#endif

}  // namespace gradsurgery
