// The kernels for AVX-512 without bf16 dot products.
#if defined(__x86_64__)
#include <immintrin.h>

#include "backend/cpu/kernels.h"

namespace manta::backend::cpu::avx512 {
namespace {
#include "backend/cpu/simd_avx512.inc"

#include "backend/cpu/gemm.inc"
#include "backend/cpu/rows.inc"

#include "backend/cpu/attention.inc"
#include "backend/cpu/table.inc"
}  // namespace

extern const Kernels kKernels;
constinit const Kernels kKernels = table("avx512");

}  // namespace manta::backend::cpu::avx512
#endif
