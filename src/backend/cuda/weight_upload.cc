#include "backend/cuda/weight_upload.h"

#include <algorithm>
#include <cstring>
#include <memory>

namespace manta::backend::cuda {

Result<WeightUpload*> WeightUpload::of_this_thread() {
  thread_local std::unique_ptr<WeightUpload> upload;
  if (upload == nullptr) {
    auto made = std::make_unique<WeightUpload>();
    MANTA_TRY(made->init());
    upload = std::move(made);
  }
  return upload.get();
}

Status WeightUpload::init() {
  // Non-blocking: the default stream would put the threads' copies one behind the other.
  MANTA_TRY(check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream"));
  for (Piece& piece : pieces_) {
    MANTA_TRY(piece.memory.reserve(kPieceBytes));
    MANTA_TRY(piece.free.create());
  }
  return {};
}

WeightUpload::~WeightUpload() {
  if (stream_ == nullptr) return;
  cudaStreamSynchronize(stream_);
  cudaStreamDestroy(stream_);
}

Status WeightUpload::copy(void* to, const void* from, size_t num_bytes) {
  for (size_t at = 0; at < num_bytes; at += kPieceBytes) {
    const size_t n = std::min(kPieceBytes, num_bytes - at);
    Piece& piece = pieces_[next_];
    next_ = 1 - next_;
    MANTA_TRY(piece.free.wait());
    std::memcpy(piece.memory.data(), static_cast<const std::byte*>(from) + at, n);
    void* const there = static_cast<std::byte*>(to) + at;
    MANTA_TRY(check_cuda(cudaMemcpyAsync(there, piece.memory.data(), n, cudaMemcpyHostToDevice, stream_),
                         "a weight's copy to the device"));
    MANTA_TRY(piece.free.record(stream_));
  }
  return {};
}

Status WeightUpload::zero(void* to, size_t num_bytes) {
  return check_cuda(cudaMemsetAsync(to, 0, num_bytes, stream_), "a weight's memory");
}

Status WeightUpload::fill_random(void* to, DType dtype, size_t num_bytes, const RandomMatrix& values) {
  fill_random_words(to, dtype, num_bytes, values, stream_);
  return check_cuda(cudaGetLastError(), "dummy weights");
}

Status WeightUpload::finish() {
  return check_cuda(cudaStreamSynchronize(stream_), "a weight's copy to the device");
}

}  // namespace manta::backend::cuda
