#include "ep/combine.h"

#include <bit>
#include <cassert>
#include <cstring>

// Built for several instruction sets, with the widest taken at run time. A product and a sum stay two roundings in all
// of them: contraction to one would make the last bit depend on the CPU.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define MANTA_COMBINE_CLONES                                  \
  __attribute__((target_clones("avx512f", "avx2", "default"), \
                 optimize("O2", "tree-vectorize", "no-loop-unroll-and-jam", "fp-contract=off")))
#else
#define MANTA_COMBINE_CLONES
#endif

namespace manta::ep {

namespace {

// Columns that are summed over all rows before the next ones: their sums stay in registers. Tuned by bench/ep_dispatch
// (GCC 12 would otherwise jam two rows into one scalar loop).
constexpr int64_t kBlock = 128;

inline float widen(float x) {
  return x;
}
inline float widen(uint16_t bf16) {
  return std::bit_cast<float>(static_cast<uint32_t>(bf16) << 16);
}

template <typename Value>
[[gnu::always_inline]] inline void sum_rows(std::span<const WeightedRow> rows, int64_t hidden_size, float* out) {
  int64_t begin = 0;
  for (; begin + kBlock <= hidden_size; begin += kBlock) {
    float sum[kBlock] = {};
    for (const WeightedRow& r : rows) {
      const Value* values = static_cast<const Value*>(r.row) + begin;
      for (int64_t i = 0; i < kBlock; ++i) sum[i] += r.weight * widen(values[i]);
    }
    std::memcpy(out + begin, sum, sizeof(sum));
  }
  for (int64_t i = begin; i < hidden_size; ++i) {
    float sum = 0;
    for (const WeightedRow& r : rows) sum += r.weight * widen(static_cast<const Value*>(r.row)[i]);
    out[i] = sum;
  }
}

MANTA_COMBINE_CLONES void sum_f32(std::span<const WeightedRow> rows, int64_t hidden_size, float* out) {
  sum_rows<float>(rows, hidden_size, out);
}
MANTA_COMBINE_CLONES void sum_bf16(std::span<const WeightedRow> rows, int64_t hidden_size, float* out) {
  sum_rows<uint16_t>(rows, hidden_size, out);
}

}  // namespace

void combine_row(std::span<const WeightedRow> rows, DType wire_dtype, int64_t hidden_size, float* out) {
  assert(wire_dtype == DType::kF32 || wire_dtype == DType::kBF16);
  if (wire_dtype == DType::kF32) {
    sum_f32(rows, hidden_size, out);
  } else {
    sum_bf16(rows, hidden_size, out);
  }
}

}  // namespace manta::ep
