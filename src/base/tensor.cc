#include "base/tensor.h"

#include <fmt/format.h>

namespace manta {

size_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kBF16:
    case DType::kF16: return 2;
    case DType::kI64: return 8;
    case DType::kF8E4M3:
    case DType::kU8:
    case DType::kBool: return 1;
  }
  return 0;
}

const char* to_string(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "F32";
    case DType::kBF16: return "BF16";
    case DType::kF16: return "F16";
    case DType::kF8E4M3: return "F8_E4M3";
    case DType::kI32: return "I32";
    case DType::kI64: return "I64";
    case DType::kU8: return "U8";
    case DType::kBool: return "BOOL";
  }
  return "?";
}

int64_t Tensor::num_elements() const {
  int64_t n = 1;
  for (int i = 0; i < rank; ++i) n *= shape[i];
  return n;
}

bool Tensor::is_contiguous() const {
  int64_t expected = 1;
  for (int i = rank - 1; i >= 0; --i) {
    if (shape[i] != 1 && stride[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

std::string Tensor::describe() const {
  std::string dims;
  for (int i = 0; i < rank; ++i) dims += fmt::format("{}{}", i ? ", " : "", shape[i]);
  return fmt::format("{}[{}]", to_string(dtype), dims);
}

Tensor make_tensor(void* data, DType dtype, std::initializer_list<int64_t> shape) {
  assert(shape.size() <= Tensor::kMaxRank);
  Tensor t;
  t.data = data;
  t.dtype = dtype;
  t.rank = static_cast<int>(shape.size());
  int i = 0;
  for (int64_t dim : shape) t.shape[i++] = dim;
  int64_t stride = 1;
  for (i = t.rank - 1; i >= 0; --i) {
    t.stride[i] = stride;
    stride *= t.shape[i];
  }
  return t;
}

Tensor rows(const Tensor& t, int64_t first_row, int64_t num_rows) {
  assert(t.rank >= 1 && first_row >= 0 && first_row + num_rows <= t.shape[0]);
  Tensor view = t;
  view.data = static_cast<char*>(t.data) + first_row * t.stride[0] * static_cast<int64_t>(dtype_bytes(t.dtype));
  view.shape[0] = num_rows;
  return view;
}

}  // namespace manta
