// Memory of a CPU backend: tensors at addresses that stay until this object goes. Large tensors cost no memory before
// they are touched, so everything can be sized for the worst case once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <vector>

#include "base/result.h"
#include "base/tensor.h"

namespace manta::backend::host {

class HostMemory {
 public:
  // Aligned to a cache line; not initialised. kResourceExhausted when the machine has no room, naming `what`.
  Result<Tensor> allocate(const char* what, DType dtype, std::initializer_list<int64_t> shape);

  // The same in an unnamed file (memfd) of its own, which goes with this object: other processes may map `fd`.
  Result<Tensor> allocate_shared(const char* what, DType dtype, std::initializer_list<int64_t> shape, int& fd);

  size_t num_bytes() const { return num_bytes_; }

  // Sets every byte handed out so far. 0xff makes floats NaN and integers -1: what a test gives a stage to prove that
  // it reads nothing it or a stage before it has not written.
  void fill(uint8_t byte);

 private:
  struct Free {
    Free() : mapped_bytes(0), fd(-1) {}
    Free(size_t bytes, int file) : mapped_bytes(bytes), fd(file) {}
    size_t mapped_bytes;  // 0: of the heap
    int fd;
    void operator()(void* p) const;
  };
  struct Block {
    std::unique_ptr<void, Free> data;
    size_t bytes = 0;
  };
  static Error no_room(const char* what, const Tensor& tensor, size_t bytes);
  std::vector<Block> blocks_;
  size_t num_bytes_ = 0;
};

}  // namespace manta::backend::host
