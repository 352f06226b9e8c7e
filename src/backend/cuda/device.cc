#include "backend/cuda/device.h"

#include <fmt/format.h>

namespace manta::backend::cuda {

Status check_cuda(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return {};
  return error(code == cudaErrorMemoryAllocation ? ErrorCode::kResourceExhausted : ErrorCode::kInternal,
               fmt::format("{}: {} ({})", what, cudaGetErrorString(code), cudaGetErrorName(code)));
}

Result<void*> DeviceMemory::allocate_bytes(const char* what, size_t num_bytes) {
  MANTA_ASSIGN(void* data, allocate_unset(what, num_bytes));
  MANTA_TRY(check_cuda(cudaMemset(data, 0, room_for(num_bytes)), what));
  return data;
}

Result<void*> DeviceMemory::allocate_unset(const char* what, size_t num_bytes) {
  void* data = nullptr;
  const size_t rounded = room_for(num_bytes);
  if (const cudaError_t code = cudaMalloc(&data, rounded); code != cudaSuccess) {
    cudaGetLastError();
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return error(ErrorCode::kResourceExhausted,
                 fmt::format("{} needs {} bytes of GPU memory, {} of {} are free ({}): lower --max-num-batched-tokens, "
                             "--max-num-seqs, --max-model-len or --gpu-memory-utilization",
                             what, num_bytes, free, total, cudaGetErrorName(code)));
  }
  blocks_.push_back(data);
  num_bytes_ += rounded;
  return data;
}

Result<Tensor> DeviceMemory::allocate(const char* what, DType dtype, std::initializer_list<int64_t> shape) {
  Tensor tensor = make_tensor(nullptr, dtype, shape);
  MANTA_ASSIGN(tensor.data, allocate_bytes(what, tensor.num_elements() * dtype_bytes(dtype)));
  return tensor;
}

void DeviceMemory::clear() {
  for (void* block : blocks_) cudaFree(block);
  blocks_.clear();
  num_bytes_ = 0;
}

Status PinnedMemory::reserve(size_t num_bytes) {
  if (num_bytes <= num_bytes_) return {};
  if (data_ != nullptr) cudaFreeHost(data_);
  data_ = nullptr;
  num_bytes_ = 0;
  MANTA_TRY(check_cuda(cudaMallocHost(reinterpret_cast<void**>(&data_), num_bytes), "page-locked memory"));
  num_bytes_ = num_bytes;
  return {};
}

Status Event::create() {
  return check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | cudaEventBlockingSync), "an event");
}

}  // namespace manta::backend::cuda
