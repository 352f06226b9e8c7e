// The kernels for any processor.
#include "backend/cpu/kernels.h"

namespace manta::backend::cpu::portable {
namespace {
#include "backend/cpu/simd_portable.inc"

#include "backend/cpu/gemm.inc"
#include "backend/cpu/rows.inc"

#include "backend/cpu/attention.inc"
#include "backend/cpu/table.inc"
}  // namespace

extern const Kernels kKernels;
constinit const Kernels kKernels = table("portable");

}  // namespace manta::backend::cpu::portable
