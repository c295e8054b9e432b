// gram -> PCGrad's weights -> combine in one launch, where the blocks of the whole grid can wait for each other: what a block has
// read stays in its shared memory, as far as it fits, until the weights are there.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../gram/gram_cuda.h"
#include "../weights/pcgrad_cuda.h"

namespace gradsurgery {

constexpr int kFusedThreads = 256;

struct FusedProblem {
  int tasks, groups, chunks;
  int chunk_length;
  int64_t numel;  // N
  bool float64;   // in a gradient or an output: rare, and not worth kernels of its own
};

// Of a device, and of the kernel that would run on it. Sizes in bytes.
struct DeviceLimits {
  bool cooperative = false;
  int multiprocessors = 0;
  int blocks = 0;  // of the kernel on a multiprocessor, as far as registers go
  int shared_multiprocessor = 0;
  int shared_block = 0;     // of these, at most for one block
  int shared_reserved = 0;  // taken by every block besides
  int shared_static = 0;    // of the kernel
  int l2 = 0;
};

// Dynamic shared memory for each of this many blocks on a multiprocessor.
int shared_room(const DeviceLimits& device, int blocks);

struct FusedLaunch {
  int blocks = 0;  // 0: separate launches
  int slots = 0;   // of vectors kept in a block's shared memory
  int64_t shared_bytes = 0;
};

// Beyond this many times what stays on chip, keeping it saves next to nothing; and blocks that each have a fixed share of the
// work then end at more different times than blocks that are handed out as multiprocessors become free.
constexpr int kTimesOnChip = 4;

// One launch or several, and how: a function of its arguments alone.
FusedLaunch fused_launch(const FusedProblem& problem, const DeviceLimits& device);

// The same for these gradients on the current device.
FusedLaunch fused_launch_cuda(const RowTable& table, int64_t numel);

// `partial` [pairs, gram_launch(table).blocks]; of `problem`, `partial` and `blocks` are filled in here. `stream` is a
// cudaStream_t. Whether the device took the launch: a process that shares it may have less than the whole. Other launch errors
// are left for the caller to collect.
bool pcgrad_fused_cuda(const RowTable& table, const FusedLaunch& launch, PcgradCuda problem, double* partial, bool accumulate,
                       void* stream);

}  // namespace gradsurgery
