// The kernels for AVX2 and FMA.
#if defined(__x86_64__)
#include <immintrin.h>

#include "backend/cpu/kernels.h"

namespace manta::backend::cpu::avx2 {
namespace {
#include "backend/cpu/simd_avx2.inc"

#include "backend/cpu/gemm.inc"
#include "backend/cpu/rows.inc"

#include "backend/cpu/attention.inc"
#include "backend/cpu/table.inc"
}  // namespace

extern const Kernels kKernels;
constinit const Kernels kKernels = table("avx2");

}  // namespace manta::backend::cpu::avx2
#endif
