#include <array>
#include <bit>
#include <cmath>

#include "backend/cpu/kernels.h"

namespace manta::backend::cpu {

namespace portable {
extern const Kernels kKernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}
namespace avx512_bf16 {
extern const Kernels kKernels;
}
#endif

namespace {

std::array<uint8_t, 256> make_fp8_table() {
  std::array<uint8_t, 256> bytes{};
  for (int code = 0; code < 128; ++code) {
    const int exponent = code >> 3;
    const int mantissa = code & 7;
    float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
    if (code == 127) value = std::nanf("");
    const uint32_t bits = std::bit_cast<uint32_t>(value) >> 16;  // exact: 3 bits of mantissa
    bytes[code] = static_cast<uint8_t>(bits);
    bytes[128 + code] = static_cast<uint8_t>(bits >> 8);
  }
  return bytes;
}

}  // namespace

const uint8_t* fp8_to_bf16_bytes() {
  alignas(64) static const std::array<uint8_t, 256> bytes = make_fp8_table();
  return bytes.data();
}

TargetList available_kernels() {
  TargetList list;
  list.tables[list.count++] = &portable::kKernels;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) list.tables[list.count++] = &avx2::kKernels;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    list.tables[list.count++] = &avx512::kKernels;
    if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi")) {
      list.tables[list.count++] = &avx512_bf16::kKernels;
    }
  }
#endif
  return list;
}

const Kernels& best_kernels() {
  const TargetList list = available_kernels();
  return *list.tables[list.count - 1];
}

}  // namespace manta::backend::cpu
