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

  size_t num_bytes() const { return num_bytes_; }

  // Sets every byte handed out so far. 0xff makes floats NaN and integers -1: what a test gives a stage to prove that
  // it reads nothing it or a stage before it has not written.
  void fill(uint8_t byte);

 private:
  struct Free {
    void operator()(void* p) const;
  };
  struct Block {
    std::unique_ptr<void, Free> data;
    size_t bytes = 0;
  };
  std::vector<Block> blocks_;
  size_t num_bytes_ = 0;
};

}  // namespace manta::backend::host
