#include <algorithm>

#include "cuda_compat.h"
#include "cuda_upload.h"

namespace gradsurgery {
namespace {

// 4 KB of parameters everywhere; 32764 bytes from CUDA 12.1 and Volta on, of which a pointer and a count take some.
constexpr int kLargeVersion = 12010;
#if defined(GS_EMULATE_CUDA)
constexpr bool kCompilesLarge = true;
#else
constexpr int kArchitectures[] = {__CUDA_ARCH_LIST__};  // ascending
constexpr bool kCompilesLarge = CUDART_VERSION >= kLargeVersion && kArchitectures[0] >= 700;
#endif
constexpr int kSmallSlice = kTableWords, kLargeSlice = kCompilesLarge ? 4080 : kSmallSlice;
constexpr int kUploadThreads = 256, kBlockWords = 1024;

template <int Count>
struct TableSlice {
  int64_t words[Count];
};

template <int Count>
__global__ void write_table(const __grid_constant__ TableSlice<Count> slice, int count, int64_t* to) {
  const int first = int(blockIdx.x) * kBlockWords, end = min(first + kBlockWords, count);
  for (int k = first + int(threadIdx.x); k < end; k += kUploadThreads) to[k] = slice.words[k];
}

// A driver may be older than the toolkit within a major version; then it refuses to launch with large parameters.
bool launches_large() {
  int driver = 0;
  return cudaDriverGetVersion(&driver) == cudaSuccess && driver >= kLargeVersion;
}

template <int Count>
size_t upload_slice(const int64_t* words, size_t left, int64_t* to, void* stream) {
  TableSlice<Count> slice{};
  const int count = int(std::min<size_t>(Count, left));
  std::copy_n(words, count, slice.words);
  GS_LAUNCH(write_table<Count>, (count + kBlockWords - 1) / kBlockWords, kUploadThreads, 0, stream, slice, count, to);
  return size_t(count);
}

}  // namespace

void upload(Words words, int64_t* to, void* stream) {
  const bool large = words.count > kSmallSlice && launches_large();
  for (size_t done = 0; done < words.count;) {
    const size_t left = words.count - done;
    const auto slice = large && left > kSmallSlice ? upload_slice<kLargeSlice> : upload_slice<kSmallSlice>;
    done += slice(words.data + done, left, to + done, stream);
  }
}

}  // namespace gradsurgery
