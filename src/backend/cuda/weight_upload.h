// How weights get to the device: by every loading thread at once, each with a stream and page-locked memory of its own,
// so that one piece is copied there while the next is fetched from the file's pages.
#pragma once

#include "backend/cuda/device.h"
#include "backend/random_values.h"

namespace manta::backend::cuda {

class WeightUpload {
 public:
  // The calling thread's own, which lives as long as the thread.
  static Result<WeightUpload*> of_this_thread();
  ~WeightUpload();

  // `from` may go when these return; `to` is written once finish() has returned.
  Status copy(void* to, const void* from, size_t num_bytes);
  Status zero(void* to, size_t num_bytes);
  Status fill_random(void* to, DType dtype, size_t num_bytes, const RandomMatrix& values);
  Status finish();
  cudaStream_t stream() const { return stream_; }

 private:
  static constexpr size_t kPieceBytes = size_t{4} << 20;
  struct Piece {
    PinnedMemory memory;
    Event free;
  };
  Status init();

  cudaStream_t stream_ = nullptr;
  Piece pieces_[2];
  int next_ = 0;
};

// weights.cu: num_bytes / 8 words, and what is left of one.
void fill_random_words(void* to, DType dtype, size_t num_bytes, const RandomMatrix& values, cudaStream_t stream);

}  // namespace manta::backend::cuda
