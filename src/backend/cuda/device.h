// The CUDA runtime as values: errors with the call that failed, memory and streams with owners. Host code only.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <utility>
#include <vector>

#include "base/lane.h"
#include "base/result.h"
#include "base/tensor.h"

namespace manta::backend::cuda {

Status check_cuda(cudaError_t code, const char* what);

// Tensors in device memory at addresses that stay until this object goes; filled with zero bytes.
class DeviceMemory {
 public:
  DeviceMemory() = default;
  ~DeviceMemory() { clear(); }
  DeviceMemory(DeviceMemory&& other) noexcept { *this = std::move(other); }
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(blocks_, other.blocks_);
    std::swap(num_bytes_, other.num_bytes_);
    return *this;
  }

  // kResourceExhausted when the device has no room, naming `what`, its bytes and what is free.
  Result<Tensor> allocate(const char* what, DType dtype, std::initializer_list<int64_t> shape);
  Result<void*> allocate_bytes(const char* what, size_t num_bytes);
  // Not filled: room_for(num_bytes) bytes, of which those beyond num_bytes must be zero before they are read.
  Result<void*> allocate_unset(const char* what, size_t num_bytes);
  // A little more than asked for: kernels read whole 16-byte pieces.
  static size_t room_for(size_t num_bytes) { return (num_bytes + 511) / 256 * 256; }
  size_t num_bytes() const { return num_bytes_; }
  void clear();

 private:
  std::vector<void*> blocks_;
  size_t num_bytes_ = 0;
};

// Page-locked host memory: what asynchronous copies read and write.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  ~PinnedMemory() {
    if (data_ != nullptr) cudaFreeHost(data_);
  }
  PinnedMemory(PinnedMemory&& other) noexcept { *this = std::move(other); }
  PinnedMemory& operator=(PinnedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(num_bytes_, other.num_bytes_);
    return *this;
  }

  // Contents are lost. Never shrinks.
  Status reserve(size_t num_bytes);
  uint8_t* data() const { return data_; }
  size_t num_bytes() const { return num_bytes_; }

 private:
  uint8_t* data_ = nullptr;
  size_t num_bytes_ = 0;
};

// Waiting for an event parks the thread.
class Event {
 public:
  Event() = default;
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }
  Event(Event&& other) noexcept { std::swap(event_, other.event_); }
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }

  Status create();
  Status record(cudaStream_t stream) { return check_cuda(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  Status wait() { return check_cuda(cudaEventSynchronize(event_), "a step on the device"); }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

struct CudaLane : Lane {
  explicit CudaLane(cudaStream_t s) : stream(s) {}
  cudaStream_t stream;
};

inline cudaStream_t stream_of(Lane& lane) {
  return static_cast<CudaLane&>(lane).stream;
}

}  // namespace manta::backend::cuda
