#include "backend/cuda/gemm/block_gemm.cuh"

namespace manta::backend::cuda {

void gemm_bf16_fp8(const BlockGemm& g, const GemmWeight* weights, bool grouped, cudaStream_t stream) {
  choose_gemm<false, true>(g, weights, grouped, stream);
}

int prepare_bf16_fp8() {
  return prepare_gemm_kernels<false, true>();
}

}  // namespace manta::backend::cuda
