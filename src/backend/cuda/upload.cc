#include "backend/cuda/upload.h"

#include <algorithm>
#include <cstring>

namespace manta::backend::cuda {
namespace {

constexpr size_t kPiece = 4096;          // bytes that one block moves
constexpr size_t kFirstSize = 1u << 20;  // of the buffers; they grow when a step needs more

size_t aligned(size_t n) {
  return (n + 15) / 16 * 16;
}

}  // namespace

Status Upload::init() {
  for (Slot& slot : slots_) {
    MANTA_TRY(slot.host.reserve(kFirstSize));
    MANTA_TRY(slot.sent.create());
  }
  return {};
}

Upload::~Upload() {
  if (device_ != nullptr) cudaFree(device_);
}

void Upload::put_bytes(void* to, const void* from, size_t num_bytes) {
  const auto* bytes = static_cast<const uint8_t*>(from);
  for (size_t done = 0; done < num_bytes; done += kPiece) {
    const size_t n = std::min(kPiece, num_bytes - done);
    segments_.push_back(
        {static_cast<uint8_t*>(to) + done, static_cast<uint32_t>(payload_.size()), static_cast<uint32_t>(n)});
    payload_.insert(payload_.end(), bytes + done, bytes + done + n);
  }
}

Status Upload::flush(cudaStream_t stream) {
  if (segments_.empty()) return {};
  const size_t segments_at = aligned(payload_.size());
  const size_t num_bytes = segments_at + segments_.size() * sizeof(Segment);
  Slot& slot = slots_[next_];
  next_ = (next_ + 1) % kDepth;
  if (slot.used) MANTA_TRY(slot.sent.wait());
  MANTA_TRY(slot.host.reserve(num_bytes));
  std::memcpy(slot.host.data(), payload_.data(), payload_.size());
  std::memcpy(slot.host.data() + segments_at, segments_.data(), segments_.size() * sizeof(Segment));
  if (num_bytes > device_bytes_) {
    const size_t bytes = std::max(2 * num_bytes, kFirstSize);
    if (device_ != nullptr) MANTA_TRY(check_cuda(cudaFreeAsync(device_, stream), "the upload buffer"));
    device_ = nullptr;
    device_bytes_ = 0;
    MANTA_TRY(check_cuda(cudaMallocAsync(&device_, bytes, stream), "the upload buffer"));
    device_bytes_ = bytes;
  }
  MANTA_TRY(check_cuda(cudaMemcpyAsync(device_, slot.host.data(), num_bytes, cudaMemcpyHostToDevice, stream),
                       "a step's upload"));
  MANTA_TRY(slot.sent.record(stream));
  slot.used = true;
  const auto* device = static_cast<const uint8_t*>(device_);
  scatter(device, reinterpret_cast<const Segment*>(device + segments_at), static_cast<int>(segments_.size()), stream);
  payload_.clear();
  segments_.clear();
  return {};
}

}  // namespace manta::backend::cuda
