#include "backend/cuda/gemm/block_gemm.cuh"

namespace manta::backend::cuda {

void gemm_bf16_bf16(const BlockGemm& g, const GemmWeight* weights, bool grouped, cudaStream_t stream) {
  choose_gemm<false, false>(g, weights, grouped, stream);
}

int prepare_bf16_bf16() {
  return prepare_gemm_kernels<false, false>();
}

}  // namespace manta::backend::cuda
