// What a step tells the device, as one copy: pieces of host data with their device addresses are packed into
// page-locked memory, sent, and a kernel puts them where they belong. Several steps may be on their way.
#pragma once

#include <array>
#include <vector>

#include "backend/cuda/device.h"
#include "backend/cuda/step/slots.h"

namespace manta::backend::cuda {

class Upload {
 public:
  Status init();
  // `count` values to device address `to`; T's size is a multiple of 4.
  template <typename T>
  void put(T* to, const T* from, size_t count) {
    static_assert(sizeof(T) % 4 == 0);
    put_bytes(to, from, count * sizeof(T));
  }
  template <typename T>
  void put(T* to, const T& value) {
    put(to, &value, 1);
  }
  // Sends what was put since the last flush, in the stream's order.
  Status flush(cudaStream_t stream);
  ~Upload();

 private:
  static constexpr int kDepth = 3;  // uploads on their way
  struct Slot {
    PinnedMemory host;
    Event sent;
    bool used = false;
  };
  void put_bytes(void* to, const void* from, size_t num_bytes);

  std::vector<uint8_t> payload_;
  std::vector<Segment> segments_;
  std::array<Slot, kDepth> slots_;
  int next_ = 0;
  void* device_ = nullptr;
  size_t device_bytes_ = 0;
};

}  // namespace manta::backend::cuda
