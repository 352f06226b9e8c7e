// The kernels for AVX-512 with BF16 dot products and VBMI.
#if defined(__x86_64__)
#include <immintrin.h>

#include "backend/cpu/kernels.h"

#define MANTA_CPU_BF16 1

namespace manta::backend::cpu::avx512_bf16 {
namespace {
#include "backend/cpu/simd_avx512.inc"

#include "backend/cpu/gemm.inc"
#include "backend/cpu/rows.inc"

#include "backend/cpu/attention.inc"
#include "backend/cpu/table.inc"
}  // namespace

extern const Kernels kKernels;
constinit const Kernels kKernels = table("avx512_bf16");

}  // namespace manta::backend::cpu::avx512_bf16
#endif
