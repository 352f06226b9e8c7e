// The same products as block_gemm.h on wgmma and bulk tensor copies: FP8 x FP8 with block scales, dense and grouped,
// and bf16 x bf16. It takes what the copy engine can fetch (tile_gemm_takes); block_gemm has the rest.
#pragma once

#include "backend/cuda/gemm/block_gemm.h"

namespace manta::backend::cuda {

constexpr int kMaxTileGroups = 32, kMaxTileWeights = 64;

// How a product is cut: tiles of 128 x 32, 64, 96, 112, 128, 192 (FP8), 128 or 256 x 128 (bf16). It changes no row's
// bits except by `split`, whose parts are added up in the order of k.
struct TileChoice {
  int rows = 128;
  int columns = 128;
  int split = 1;  // blocks that share a tile, each a run of k: 1, 2, 4; dense only
};

bool tile_gemm_takes(const BlockGemm& g, const GemmWeight* weights, bool grouped);
// Depends on the dimensions and the device alone.
TileChoice choose_tiles(const BlockGemm& g, bool grouped);
void tile_gemm(const BlockGemm& g, const GemmWeight* weights, bool grouped, const TileChoice& choice,
               cudaStream_t stream);

// Once, before the first launch. Returns a CUDA error code.
int prepare_tile_gemm();

}  // namespace manta::backend::cuda
