#include "backend/cuda/gemm/block_gemm.cuh"
#include "backend/cuda/gemm/tile_gemm.h"

namespace manta::backend::cuda {
namespace {

void dispatch(const BlockGemm& g, const GemmWeight* weights, bool grouped, cudaStream_t stream) {
  if (tile_gemm_takes(g, weights, grouped)) return tile_gemm(g, weights, grouped, choose_tiles(g, grouped), stream);
  if (g.a_scale != nullptr) return gemm_fp8_fp8(g, weights, grouped, stream);
  if (g.w_fp8) return gemm_bf16_fp8(g, weights, grouped, stream);
  gemm_bf16_bf16(g, weights, grouped, stream);
}

}  // namespace

void block_gemm(const BlockGemm& g, const GemmWeight* weights, cudaStream_t stream) {
  if (g.m > 0) dispatch(g, weights, false, stream);
}

void grouped_block_gemm(const BlockGemm& g, const GemmWeight* weights, cudaStream_t stream) {
  if (g.groups.window_rows > 0 && g.groups.num_groups > 0) dispatch(g, weights, true, stream);
}

int prepare_block_gemm() {
  int code = prepare_bf16_bf16();
  if (code == 0) code = prepare_bf16_fp8();
  if (code == 0) code = prepare_fp8_fp8();
  return code != 0 ? code : prepare_tile_gemm();
}

}  // namespace manta::backend::cuda
