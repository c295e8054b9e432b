#include <algorithm>
#include <cstring>
#include <mutex>

#include "cuda_compat.h"
#include "cuda_table_cache.h"
#include "cuda_upload.h"

namespace gradsurgery {

TableRing::Span* TableRing::find(Words words) {
  for (auto span = spans_.rbegin(); span != spans_.rend(); ++span)
    if (span->count == words.count && std::memcmp(copy_.data() + span->first, words.data, words.count * sizeof(int64_t)) == 0)
      return &*span;
  return nullptr;
}

std::optional<size_t> TableRing::make_room(size_t count) {
  if (count > kWords) return std::nullopt;
  const size_t first = next_ + count <= kWords ? next_ : 0;
  const auto overwritten = [&](const Span& span) { return span.first < first + count && first < span.first + span.count; };
  for (const Span& span : spans_)
    if (overwritten(span) && span.users > 0) return std::nullopt;
  spans_.remove_if(overwritten);
  return first;
}

TableRing::Span* TableRing::keep(size_t first, Words words) {
  std::copy_n(words.data, words.count, copy_.data() + first);
  next_ = first + words.count;
  spans_.push_back(Span{first, words.count, 0});
  return &spans_.back();
}

namespace {

// Memory is the driver's, not that of torch's allocator: what lives on must not lie in a pool that a capture, or the warm-up for
// one, has installed. Another thread's capture may forbid all threads such calls, which this one is no part of.
int64_t* allocate_ring() {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  cudaThreadExchangeStreamCaptureMode(&mode);
  void* memory = nullptr;
  if (cudaMalloc(&memory, TableRing::kWords * sizeof(int64_t)) != cudaSuccess) {
    memory = nullptr;
    cudaGetLastError();  // not the caller's: without a ring tables go to memory of their own
  }
  cudaThreadExchangeStreamCaptureMode(&mode);
  return static_cast<int64_t*>(memory);
}

// A stream's id is never given to another stream, as its handle is once it is destroyed: a new stream is not ordered after what
// the old one still has to do, and must not meet its tables.
struct StreamRing {
  int device;
  unsigned long long stream;
  int64_t* memory;  // [TableRing::kWords]
  TableRing ring;

  StreamRing(int device_, unsigned long long stream_, int64_t* memory_) : device(device_), stream(stream_), memory(memory_) {}
};

// Never destroyed: when the process ends, the CUDA context may be gone before static objects are.
struct Rings {
  std::mutex mutex;
  std::list<StreamRing> all;

  static Rings& get() {
    static Rings* const rings = new Rings;
    return *rings;
  }

  StreamRing* find(int device, unsigned long long stream) {
    for (StreamRing& ring : all)
      if (ring.device == device && ring.stream == stream) return &ring;
    if (all.size() >= kMaxRings) return nullptr;
    int64_t* const memory = allocate_ring();
    return memory ? &all.emplace_back(device, stream, memory) : nullptr;
  }
};

}  // namespace

CachedTable::~CachedTable() {
  if (!span_) return;
  const std::lock_guard<std::mutex> lock(Rings::get().mutex);
  --span_->users;
}

CachedTable cached_table(Words words, int device, void* stream_) {
  const auto stream = static_cast<cudaStream_t>(stream_);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;  // which a stream does not tell while it is captured
  if (words.count > TableRing::kWords) return {};
  if (cudaStreamIsCapturing(stream, &status) != cudaSuccess ||
      (status == cudaStreamCaptureStatusNone && cudaStreamGetId(stream, &id) != cudaSuccess)) {
    cudaGetLastError();  // not the caller's, as above
    return {};
  }
  if (status != cudaStreamCaptureStatusNone) return {};
  Rings& rings = Rings::get();
  const std::lock_guard<std::mutex> lock(rings.mutex);
  StreamRing* const found = rings.find(device, id);
  if (!found) return {};
  TableRing::Span* span = found->ring.find(words);
  if (!span) {
    const std::optional<size_t> first = found->ring.make_room(words.count);
    if (!first) return {};
    upload(words, found->memory + *first, stream_);
    if (cudaPeekAtLastError() != cudaSuccess) return {};
    span = found->ring.keep(*first, words);
  }
  ++span->users;
  return CachedTable(span, found->memory + span->first);
}

}  // namespace gradsurgery
