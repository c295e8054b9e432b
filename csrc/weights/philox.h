// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), the counter-based generator behind
// every random order: the same (seed, step, group, task) gives the same order on every rank, device and resumed run.
#pragma once

#include <cstdint>

#include "../common/macros.h"

namespace gradsurgery {

// One block: four words that depend on every bit of key and counter.
GS_HOST_DEVICE void philox_block(uint32_t k0, uint32_t k1, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t* word) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  word[0] = c0;
  word[1] = c1;
  word[2] = c2;
  word[3] = c3;
}

struct Philox {
  uint32_t key[2];
  uint32_t counter[4];
  uint32_t word[4];
  int used;

  // The stream of one task: counter = (step, group, task << 16 | block).
  GS_HOST_DEVICE Philox(int64_t seed, int64_t step, uint32_t group, uint32_t task)
      : key{uint32_t(uint64_t(seed)), uint32_t(uint64_t(seed) >> 32)},
        counter{uint32_t(uint64_t(step)), uint32_t(uint64_t(step) >> 32), group, task << 16},
        word{0, 0, 0, 0},
        used(4) {}

  GS_HOST_DEVICE void refill() {
    philox_block(key[0], key[1], counter[0], counter[1], counter[2], counter[3], word);
    counter[3] += 1;
    used = 0;
  }

  // Uniform on 0..bound-1 (multiply-shift; the bias is below bound / 2^32).
  GS_HOST_DEVICE uint32_t below(uint32_t bound) {
    if (used == 4) refill();
    // A chain of selects instead of word[used]: a run-time index would move the array to local memory on a GPU.
    const uint32_t bits = used == 0 ? word[0] : used == 1 ? word[1] : used == 2 ? word[2] : word[3];
    ++used;
    return uint32_t((uint64_t(bits) * bound) >> 32);
  }
};

}  // namespace gradsurgery
