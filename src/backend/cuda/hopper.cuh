// Hopper's own instructions by name: mbarriers, bulk tensor copies, clusters, warpgroup products. Device code only.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "backend/cuda/wgmma.cuh"

namespace manta::backend::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ float load_shared(uint32_t address) {
  float x;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(address));
  return x;
}

// True for one lane of a warp, all of which must ask. The compiler knows that what follows is one thread's: it keeps
// the operands of copies in uniform registers, where else it makes a loop around each that takes longer than the copy.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected = 0;
  asm volatile("{\n.reg .pred one;\nelect.sync _|one, 0xffffffff;\n@one mov.s32 %0, 1;\n}" : "+r"(elected));
  return elected != 0;
}

// ---- mbarriers ---------------------------------------------------------------------------------------------------

// Waits and arrivals order shared memory of the block alone: what the copy engine and products need. A scope of the
// whole cluster would cost a fence of the whole device each time.
__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}
// Makes barrier_init visible to the copy engine and to the other blocks of the cluster.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// One arrival that also announces `bytes` of copies.
__device__ __forceinline__ void barrier_arrive_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// One arrival of a warpgroup.
__device__ __forceinline__ void release(uint64_t* barrier) {
  if (threadIdx.x % 128 == 0) barrier_arrive(barrier);
}
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
// bar.sync among the first `threads` that name the same id (1..15).
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Counts as having been there, without waiting.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- clusters ----------------------------------------------------------------------------------------------------

__device__ __forceinline__ int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
__device__ __forceinline__ float4 load_remote(const float* local, int block) {
  float4 v;
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %4, %5;\n"
      "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];\n}"
      : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
      : "r"(shared_address(local)), "r"(block));
  return v;
}

// ---- bulk tensor copies ------------------------------------------------------------------------------------------

__device__ __forceinline__ void tensor_load(void* to, const CUtensorMap* map, uint64_t* barrier, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y)
      : "memory");
}
__device__ __forceinline__ void tensor_load(void* to, const CUtensorMap* map, uint64_t* barrier, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}
// ---- warpgroup products ------------------------------------------------------------------------------------------

// Shared memory in rows of 128 bytes, their 16-byte chunks swizzled by row % 8 (as the copy engine writes them), as an
// operand whose rows run along k: 8 rows make a group of 1024 bytes.
__device__ __forceinline__ uint64_t k_major(const void* p) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kGroup = uint64_t{1024 >> 4} << 32, kUnused = uint64_t{1} << 16;
  return kSwizzle128 | kGroup | kUnused | ((shared_address(p) & 0x3ffff) >> 4);
}
// The same in two steps: what differs between operands, in 32 bits, and the descriptor. Where the former comes from a
// shuffle, the compiler keeps descriptors in uniform registers, where products want them; else it moves all their words
// there one by one, which takes longer than to ask for a product.
__device__ __forceinline__ uint32_t k_major_low(const void* p) {
  return __shfl_sync(~0u, static_cast<uint32_t>(k_major(p)), 0);
}
__device__ __forceinline__ uint64_t k_major_of(uint32_t low) {
  return k_major(nullptr) & 0xffffffff00000000 | low;
}
// The same memory as an operand whose rows ARE k and hold 64 bf16 columns; `column_step` bytes to the next 64 columns.
__device__ __forceinline__ uint64_t rows_are_k(const void* p, int column_step) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kGroup = uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kGroup | (static_cast<uint64_t>(column_step >> 4) << 16) | ((shared_address(p) & 0x3ffff) >> 4);
}
__device__ __forceinline__ uint64_t advanced(uint64_t descriptor, int bytes) {
  return descriptor + static_cast<uint64_t>(bytes >> 4);
}

__device__ __forceinline__ void wgmma_begin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from touching accumulators, or operands in registers, while products run.
template <int kCount>
__device__ __forceinline__ void wgmma_hold(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void wgmma_hold(uint32_t (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(d[i])::"memory");
}
// What threads wrote to shared memory becomes visible to products and copies.
__device__ __forceinline__ void fence_to_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Registers per thread of a warpgroup: a producer gives, consumers take.
template <int kCount>
__device__ __forceinline__ void registers_give() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void registers_take() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace manta::backend::cuda
