// The functions of the CUDA runtime that host code calls, as a device would answer that has everything; tests change what it
// says.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "device.h"

using cudaStream_t = void*;
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed };

namespace simt {

inline int driver_version = 13000;
inline bool capturing = false;      // all streams
inline bool out_of_memory = false;  // whether allocations fail
inline cudaError_t last_error = cudaSuccess;

// How many kernels each host function has launched.
inline std::mutex launches_mutex;
inline std::map<std::string, int> launches;

inline void count_launch(const char* function) {
  const std::lock_guard<std::mutex> lock(launches_mutex);
  ++launches[function];
}

}  // namespace simt

inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = simt::driver_version;
  return cudaSuccess;
}

inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = simt::capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

inline cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
  *id = reinterpret_cast<uintptr_t>(stream);
  return cudaSuccess;
}

inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }

inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = simt::out_of_memory ? nullptr : std::malloc(bytes);
  return *memory ? cudaSuccess : simt::last_error = cudaErrorMemoryAllocation;
}

inline cudaError_t cudaPeekAtLastError() { return simt::last_error; }

inline cudaError_t cudaGetLastError() { return std::exchange(simt::last_error, cudaSuccess); }
