#include "backend/host/host_memory.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

namespace manta::backend::host {

void HostMemory::Free::operator()(void* p) const {
  if (mapped_bytes == 0) return std::free(p);
  ::munmap(p, mapped_bytes);
  ::close(fd);
}

Error HostMemory::no_room(const char* what, const Tensor& tensor, size_t bytes) {
  return error(ErrorCode::kResourceExhausted,
               fmt::format("{} needs {} bytes ({}), more than this machine gives: lower --max-num-batched-tokens, "
                           "--max-num-seqs or --kv-cache-memory-bytes",
                           what, bytes, tensor.describe()));
}

Result<Tensor> HostMemory::allocate(const char* what, DType dtype, std::initializer_list<int64_t> shape) {
  constexpr size_t kAlignment = 64;
  Tensor tensor = make_tensor(nullptr, dtype, shape);
  const size_t bytes = static_cast<size_t>(tensor.num_elements()) * dtype_bytes(dtype);
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  std::unique_ptr<void, Free> data(std::aligned_alloc(kAlignment, rounded == 0 ? kAlignment : rounded));
  if (data == nullptr) return no_room(what, tensor, bytes);
  tensor.data = data.get();
  blocks_.push_back({std::move(data), bytes});
  num_bytes_ += bytes;
  return tensor;
}

Result<Tensor> HostMemory::allocate_shared(const char* what, DType dtype, std::initializer_list<int64_t> shape,
                                           int& fd) {
  Tensor tensor = make_tensor(nullptr, dtype, shape);
  const size_t bytes = static_cast<size_t>(tensor.num_elements()) * dtype_bytes(dtype);
  fd = ::memfd_create("manta-kv-cache", MFD_CLOEXEC);
  if (fd < 0) return no_room(what, tensor, bytes);
  void* at = MAP_FAILED;
  if (::ftruncate(fd, static_cast<off_t>(bytes)) == 0) {
    at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  }
  if (at == MAP_FAILED) {
    ::close(fd);
    return no_room(what, tensor, bytes);
  }
  tensor.data = at;
  blocks_.push_back({std::unique_ptr<void, Free>(at, Free{bytes, fd}), bytes});
  num_bytes_ += bytes;
  return tensor;
}

void HostMemory::fill(uint8_t byte) {
  for (Block& block : blocks_) std::memset(block.data.get(), byte, block.bytes);
}

}  // namespace manta::backend::host
