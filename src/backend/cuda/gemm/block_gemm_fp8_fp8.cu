#include "backend/cuda/gemm/block_gemm.cuh"

namespace manta::backend::cuda {

void gemm_fp8_fp8(const BlockGemm& g, const GemmWeight* weights, bool grouped, cudaStream_t stream) {
  choose_gemm<true, true>(g, weights, grouped, stream);
}

int prepare_fp8_fp8() {
  return prepare_gemm_kernels<true, true>();
}

}  // namespace manta::backend::cuda
