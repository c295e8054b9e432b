// The device that the emulator stands for, as CUDA's runtime describes it, and what it refuses to launch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

namespace simt {

// Small, so that few fibers are alive at once and little fits into shared memory; tests set others.
struct Device {
  bool cooperative = true;
  int multiprocessors = 3;
  int blocks = 2;                         // of any kernel a multiprocessor, as far as registers go
  int shared_multiprocessor = 100 << 10;  // bytes
  int shared_block = 99 << 10;            // of these, at most for one block that asks
  int shared_reserved = 1 << 10;          // taken by every block besides
  int static_shared = 8 << 10;            // of any cooperative kernel, at most
  int l2 = 1 << 20;
};

inline Device device;
inline bool shared_with_others = false;  // so that it refuses cooperative launches, whatever it says of itself
inline int device_number = 0;            // changes with the description: what was learnt of another device does not hold
inline int64_t traffic = 0;  // bytes read from and written to device memory so far, by accesses that announce their size
inline std::map<const void*, int> allowed;  // dynamic shared memory of the kernels that asked for more

template <class... Parameters>
const void* address_of(void (*kernel)(Parameters...)) {
  return reinterpret_cast<const void*>(kernel);
}

inline size_t dynamic_shared_limit(const void* kernel) {
  const auto asked = allowed.find(kernel);
  return asked == allowed.end() ? 48 << 10 : size_t(asked->second);
}

inline int resident_blocks(size_t dynamic_bytes) {
  const int each = int(dynamic_bytes) + device.static_shared + device.shared_reserved;
  return device.shared_multiprocessor / each < device.blocks ? device.shared_multiprocessor / each : device.blocks;
}

}  // namespace simt

// --- the part of CUDA's runtime that launch functions use ---

enum cudaError_t {
  cudaSuccess,
  cudaErrorMemoryAllocation,
  cudaErrorInvalidValue,
  cudaErrorNotSupported,
  cudaErrorCooperativeLaunchTooLarge,
};
enum cudaDeviceAttr {
  cudaDevAttrCooperativeLaunch,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrReservedSharedMemoryPerBlock,
  cudaDevAttrL2CacheSize,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
};

inline cudaError_t cudaGetDevice(int* device) {
  *device = simt::device_number;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  const simt::Device& d = simt::device;
  const int values[] = {d.cooperative, d.multiprocessors, d.shared_multiprocessor, d.shared_block, d.shared_reserved, d.l2};
  *value = values[which];
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel) {
  attributes->sharedSizeBytes = size_t(simt::device.static_shared);
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int value) {
  if (value + simt::device.static_shared > simt::device.shared_block) return cudaErrorInvalidValue;
  simt::allowed[simt::address_of(kernel)] = value;
  return cudaSuccess;
}

template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, size_t dynamic_bytes) {
  *blocks = simt::resident_blocks(dynamic_bytes);
  return cudaSuccess;
}
