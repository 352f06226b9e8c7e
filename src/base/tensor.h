// A view of memory somebody else owns: pointer, dtype, shape, strides. Copying a Tensor copies the view.
// It says nothing about which device the memory is on; the backend that made it knows.
#pragma once

#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <string>

namespace manta {

enum class DType : uint8_t { kF32, kBF16, kF16, kF8E4M3, kI32, kI64, kU8, kBool };

size_t dtype_bytes(DType dtype);
const char* to_string(DType dtype);  // as safetensors spells it: "F32", "BF16", "F8_E4M3", …

struct Tensor {
  static constexpr int kMaxRank = 4;

  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};   // elements
  std::array<int64_t, kMaxRank> stride{};  // elements, not bytes

  template <typename T>
  T* as() const {
    assert(sizeof(T) == dtype_bytes(dtype));
    return static_cast<T*>(data);
  }
  int64_t num_elements() const;
  bool is_contiguous() const;
  std::string describe() const;  // "BF16[12, 256]"
};

// A dense row-major view.
Tensor make_tensor(void* data, DType dtype, std::initializer_list<int64_t> shape);

// The first num_rows rows of t (axis 0).
Tensor rows(const Tensor& t, int64_t first_row, int64_t num_rows);

}  // namespace manta
