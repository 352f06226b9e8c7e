// wgmma: a warpgroup's product of 64 rows, d += a x b, asynchronous. Operands are descriptors of swizzled shared memory
// (hopper.cuh) or, where a is an array, registers. An instruction names every accumulator: macros name 8 at a time.
#pragma once

#include <cstdint>

namespace manta::backend::cuda {

// clang-format off
#define MANTA_NAMES_0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MANTA_NAMES_1 "%8, %9, %10, %11, %12, %13, %14, %15"
#define MANTA_NAMES_2 "%16, %17, %18, %19, %20, %21, %22, %23"
#define MANTA_NAMES_3 "%24, %25, %26, %27, %28, %29, %30, %31"
#define MANTA_NAMES_4 "%32, %33, %34, %35, %36, %37, %38, %39"
#define MANTA_NAMES_5 "%40, %41, %42, %43, %44, %45, %46, %47"
#define MANTA_NAMES_6 "%48, %49, %50, %51, %52, %53, %54, %55"
#define MANTA_NAMES_7 "%56, %57, %58, %59, %60, %61, %62, %63"
#define MANTA_NAMES_8 "%64, %65, %66, %67, %68, %69, %70, %71"
#define MANTA_NAMES_9 "%72, %73, %74, %75, %76, %77, %78, %79"
#define MANTA_NAMES_10 "%80, %81, %82, %83, %84, %85, %86, %87"
#define MANTA_NAMES_11 "%88, %89, %90, %91, %92, %93, %94, %95"
#define MANTA_NAMES_12 "%96, %97, %98, %99, %100, %101, %102, %103"
#define MANTA_NAMES_13 "%104, %105, %106, %107, %108, %109, %110, %111"
#define MANTA_NAMES_14 "%112, %113, %114, %115, %116, %117, %118, %119"
#define MANTA_NAMES_15 "%120, %121, %122, %123, %124, %125, %126, %127"
#define MANTA_NAMES_UPTO_2 MANTA_NAMES_0 ", " MANTA_NAMES_1
#define MANTA_NAMES_UPTO_4 MANTA_NAMES_UPTO_2 ", " MANTA_NAMES_2 ", " MANTA_NAMES_3
#define MANTA_NAMES_UPTO_6 MANTA_NAMES_UPTO_4 ", " MANTA_NAMES_4 ", " MANTA_NAMES_5
#define MANTA_NAMES_UPTO_7 MANTA_NAMES_UPTO_6 ", " MANTA_NAMES_6
#define MANTA_NAMES_UPTO_8 MANTA_NAMES_UPTO_7 ", " MANTA_NAMES_7
#define MANTA_NAMES_UPTO_12 MANTA_NAMES_UPTO_8 ", " MANTA_NAMES_8 ", " MANTA_NAMES_9 ", " MANTA_NAMES_10 ", " MANTA_NAMES_11
#define MANTA_NAMES_UPTO_16 MANTA_NAMES_UPTO_12 ", " MANTA_NAMES_12 ", " MANTA_NAMES_13 ", " MANTA_NAMES_14 ", " MANTA_NAMES_15
#define MANTA_SUMS(i) "+f"(d[8 * i + 0]), "+f"(d[8 * i + 1]), "+f"(d[8 * i + 2]), "+f"(d[8 * i + 3]), "+f"(d[8 * i + 4]), "+f"(d[8 * i + 5]), "+f"(d[8 * i + 6]), "+f"(d[8 * i + 7])
#define MANTA_SUMS_UPTO_2 MANTA_SUMS(0), MANTA_SUMS(1)
#define MANTA_SUMS_UPTO_4 MANTA_SUMS_UPTO_2, MANTA_SUMS(2), MANTA_SUMS(3)
#define MANTA_SUMS_UPTO_6 MANTA_SUMS_UPTO_4, MANTA_SUMS(4), MANTA_SUMS(5)
#define MANTA_SUMS_UPTO_7 MANTA_SUMS_UPTO_6, MANTA_SUMS(6)
#define MANTA_SUMS_UPTO_8 MANTA_SUMS_UPTO_7, MANTA_SUMS(7)
#define MANTA_SUMS_UPTO_12 MANTA_SUMS_UPTO_8, MANTA_SUMS(8), MANTA_SUMS(9), MANTA_SUMS(10), MANTA_SUMS(11)
#define MANTA_SUMS_UPTO_16 MANTA_SUMS_UPTO_12, MANTA_SUMS(12), MANTA_SUMS(13), MANTA_SUMS(14), MANTA_SUMS(15)
// groups: accumulators / 8; then the operands' numbers: a, b and whether to add.
#define MANTA_WGMMA(shape, groups, a_name, b_name, add_name, rest, ...)                                  \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " add_name ", 0;\n"                                     \
               "wgmma.mma_async.sync.aligned." shape " {" MANTA_NAMES_UPTO_##groups "}, " a_name ", " b_name \
               ", p, 1, 1" rest ";\n}\n"                                                                  \
               : MANTA_SUMS_UPTO_##groups                                                                  \
               : __VA_ARGS__, "r"(int{add}))

// a [64, 32] x b [192, 32]^T
__device__ __forceinline__ void wgmma_e4m3(float (&d)[96], uint64_t a, uint64_t b, bool add) {
  MANTA_WGMMA("m64n192k32.f32.e4m3.e4m3", 12, "%96", "%97", "%98", "", "l"(a), "l"(b));
}
// a [64, 32] x b [128, 32]^T
__device__ __forceinline__ void wgmma_e4m3(float (&d)[64], uint64_t a, uint64_t b, bool add) {
  MANTA_WGMMA("m64n128k32.f32.e4m3.e4m3", 8, "%64", "%65", "%66", "", "l"(a), "l"(b));
}
// a [64, 32] x b [112, 32]^T
__device__ __forceinline__ void wgmma_e4m3(float (&d)[56], uint64_t a, uint64_t b, bool add) {
  MANTA_WGMMA("m64n112k32.f32.e4m3.e4m3", 7, "%56", "%57", "%58", "", "l"(a), "l"(b));
}
// a [64, 32] x b [96, 32]^T
__device__ __forceinline__ void wgmma_e4m3(float (&d)[48], uint64_t a, uint64_t b, bool add) {
  MANTA_WGMMA("m64n96k32.f32.e4m3.e4m3", 6, "%48", "%49", "%50", "", "l"(a), "l"(b));
}
// a [64, 32] x b [64, 32]^T
__device__ __forceinline__ void wgmma_e4m3(float (&d)[32], uint64_t a, uint64_t b, bool add) {
  MANTA_WGMMA("m64n64k32.f32.e4m3.e4m3", 4, "%32", "%33", "%34", "", "l"(a), "l"(b));
}
// a [64, 32] x b [32, 32]^T
__device__ __forceinline__ void wgmma_e4m3(float (&d)[16], uint64_t a, uint64_t b, bool add) {
  MANTA_WGMMA("m64n32k32.f32.e4m3.e4m3", 2, "%16", "%17", "%18", "", "l"(a), "l"(b));
}
// a [64, 16] x b [128, 16]^T
__device__ __forceinline__ void wgmma_bf16(float (&d)[64], uint64_t a, uint64_t b, bool add) {
  MANTA_WGMMA("m64n128k16.f32.bf16.bf16", 8, "%64", "%65", "%66", ", 0, 0", "l"(a), "l"(b));
}
// a [64, 16] x b [64, 16]^T
__device__ __forceinline__ void wgmma_bf16(float (&d)[32], uint64_t a, uint64_t b, bool add) {
  MANTA_WGMMA("m64n64k16.f32.bf16.bf16", 4, "%32", "%33", "%34", ", 0, 0", "l"(a), "l"(b));
}
// a [64, 16] x b [16, 128], b with its columns contiguous
__device__ __forceinline__ void wgmma_bf16_rows(float (&d)[64], uint64_t a, uint64_t b, bool add) {
  MANTA_WGMMA("m64n128k16.f32.bf16.bf16", 8, "%64", "%65", "%66", ", 0, 1", "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma_bf16_rows(float (&d)[64], const uint32_t (&a)[4], uint64_t b, bool add) {
  MANTA_WGMMA("m64n128k16.f32.bf16.bf16", 8, "{%64, %65, %66, %67}", "%68", "%69", ", 1", "r"(a[0]), "r"(a[1]),
              "r"(a[2]), "r"(a[3]), "l"(b));
}
// a [64, 16] x b [16, 256], b with its columns contiguous
__device__ __forceinline__ void wgmma_bf16_rows(float (&d)[128], uint64_t a, uint64_t b, bool add) {
  MANTA_WGMMA("m64n256k16.f32.bf16.bf16", 16, "%128", "%129", "%130", ", 0, 1", "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma_bf16_rows(float (&d)[128], const uint32_t (&a)[4], uint64_t b, bool add) {
  MANTA_WGMMA("m64n256k16.f32.bf16.bf16", 16, "{%128, %129, %130, %131}", "%132", "%133", ", 1", "r"(a[0]), "r"(a[1]),
              "r"(a[2]), "r"(a[3]), "l"(b));
}
// clang-format on

}  // namespace manta::backend::cuda
