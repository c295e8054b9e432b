// Compiles GS_TARGET_FILE once per instruction set, each into its own namespace; `pick` in cpu.h chooses one at run time.
// Before including this, include every header the target file needs: code from a header that is first seen under a wider
// instruction set could be merged by the linker into code that runs on a narrower machine.

#define GS_ISA baseline
#define GS_NATIVE_BYTES 16
#define GS_TILE 2
#include GS_TARGET_FILE
#undef GS_ISA
#undef GS_NATIVE_BYTES
#undef GS_TILE

#if GS_DISPATCH_X86

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v3"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#endif
#define GS_ISA avx2
#define GS_NATIVE_BYTES 32
#define GS_TILE 2
#define GS_F16C 1
#include GS_TARGET_FILE
#undef GS_ISA
#undef GS_NATIVE_BYTES
#undef GS_TILE
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("arch=x86-64-v4"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#endif
#define GS_ISA avx512
#define GS_NATIVE_BYTES 64
#define GS_TILE 4
#include GS_TARGET_FILE
#undef GS_ISA
#undef GS_NATIVE_BYTES
#undef GS_TILE
#undef GS_F16C
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // GS_DISPATCH_X86
