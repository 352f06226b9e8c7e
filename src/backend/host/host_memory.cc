#include "backend/host/host_memory.h"

#include <fmt/format.h>

#include <cstdlib>
#include <cstring>

namespace manta::backend::host {

void HostMemory::Free::operator()(void* p) const {
  std::free(p);
}

Result<Tensor> HostMemory::allocate(const char* what, DType dtype, std::initializer_list<int64_t> shape) {
  constexpr size_t kAlignment = 64;
  Tensor tensor = make_tensor(nullptr, dtype, shape);
  const size_t bytes = static_cast<size_t>(tensor.num_elements()) * dtype_bytes(dtype);
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  std::unique_ptr<void, Free> data(std::aligned_alloc(kAlignment, rounded == 0 ? kAlignment : rounded));
  if (data == nullptr) {
    return error(ErrorCode::kResourceExhausted,
                 fmt::format("{} needs {} bytes ({}), more than this machine gives: lower --max-num-batched-tokens, "
                             "--max-num-seqs or --kv-cache-memory-bytes",
                             what, bytes, tensor.describe()));
  }
  tensor.data = data.get();
  blocks_.push_back({std::move(data), bytes});
  num_bytes_ += bytes;
  return tensor;
}

void HostMemory::fill(uint8_t byte) {
  for (Block& block : blocks_) std::memset(block.data.get(), byte, block.bytes);
}

}  // namespace manta::backend::host
