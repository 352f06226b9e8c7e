#include "backend/cpu/gemm.h"

#include <algorithm>
#include <cstring>

namespace manta::backend::cpu {
namespace {

// Rows of one piece: 24 KiB of sums and a 16 KiB expanded block stay in L1 and L2. Tuned by bench/cpu_gemm_bench.
constexpr int kRowBlock = 96;
// k of one call for formats without scale blocks: 256 x 64 bf16 weights are 32 KiB.
constexpr int kBlockK = 256;
constexpr size_t kTileFloats = kRowBlock * kPanelColumns;
constexpr size_t kExpandedFloats = kScaleBlock * kPanelColumns / 2;
constexpr size_t kScratchFloats = 2 * kTileFloats + kExpandedFloats + 16;

int64_t num_row_blocks(const GemmProblem& p) {
  return (p.rows + kRowBlock - 1) / kRowBlock;
}

int64_t num_pieces(const GemmProblem& p) {
  return num_row_blocks(p) * p.weight->num_panels();
}

// Roughly: weights stream at 16 bytes/ns, sums run at 100 products/ns. Only decides how work is cut.
int64_t estimated_ns(const GemmProblem& p) {
  const int64_t matrices = p.up != nullptr ? 2 : 1;
  const int64_t values = static_cast<int64_t>(p.weight->n()) * p.weight->k() * matrices;
  const int64_t bytes = static_cast<int64_t>(p.weight->num_bytes()) * matrices;
  return std::max(bytes / 16, values * p.rows / 100);
}

}  // namespace

int64_t grain_for(int64_t pieces, int64_t total_ns, int num_threads) {
  if (num_threads == 1 || total_ns < kWorthWakingNs) return std::max<int64_t>(pieces, 1);
  const int64_t by_cost = pieces * (kWorthWakingNs / 4) / std::max<int64_t>(total_ns, 1);
  const int64_t fair = (pieces + num_threads - 1) / num_threads;
  return std::clamp<int64_t>(by_cost, 1, fair);
}

Gemm::Gemm(const Kernels& kernels, host::ThreadTeam& team)
    : kernels_(kernels), team_(team), scratch_(kScratchFloats * team.num_threads()) {}

Gemm::Scratch Gemm::scratch(int thread) {
  float* base = scratch_.data() + kScratchFloats * thread;
  base += (64 - reinterpret_cast<uintptr_t>(base) % 64) % 64 / sizeof(float);
  return {base, base + kTileFloats, reinterpret_cast<uint16_t*>(base + 2 * kTileFloats)};
}

void Gemm::run(std::span<GemmProblem> problems) {
  int64_t pieces = 0, ns = 0;
  for (GemmProblem& p : problems) {
    p.first_piece = pieces;
    pieces += num_pieces(p);
    ns += p.rows > 0 ? estimated_ns(p) : 0;
  }
  team_.parallel_for(pieces, grain_for(pieces, ns, team_.num_threads()),
                     [this, problems](int64_t begin, int64_t end, int thread) {
                       const Scratch mine = scratch(thread);
                       auto p = std::upper_bound(problems.begin(), problems.end(), begin,
                                                 [](int64_t i, const GemmProblem& g) { return i < g.first_piece; }) -
                                1;
                       for (int64_t i = begin; i < end; ++i) {
                         while (i - p->first_piece >= num_pieces(*p)) ++p;
                         run_piece(*p, i - p->first_piece, mine);
                       }
                     });
}

void Gemm::run_piece(const GemmProblem& p, int64_t piece, const Scratch& scratch) {
  // Row blocks of one panel follow each other: the panel stays in the cache.
  const int panel = static_cast<int>(piece / num_row_blocks(p));
  const int first_row = static_cast<int>(piece % num_row_blocks(p)) * kRowBlock;
  const int rows = std::min(kRowBlock, p.rows - first_row);
  multiply(*p.weight, p, panel, first_row, rows, scratch.tile, scratch.expanded);
  if (p.up != nullptr) multiply(*p.up, p, panel, first_row, rows, scratch.up_tile, scratch.expanded);
  write(p, panel, first_row, rows, scratch);
}

void Gemm::multiply(const PackedMatrix& w, const GemmProblem& p, int panel, int first_row, int rows, float* tile,
                    uint16_t* expanded) {
  std::memset(tile, 0, sizeof(float) * rows * kPanelColumns);
  if (w.format() == MatrixFormat::kF32) {
    const float* a = static_cast<const float*>(p.a) + first_row * p.lda;
    const float* data = static_cast<const float*>(w.panel(panel));
    for (int k = 0; k < w.k(); k += kBlockK) {
      kernels_.gemm_f32(a + k, p.lda, rows, std::min(kBlockK, w.k() - k), data + k * kPanelColumns, tile);
    }
    return;
  }
  const uint16_t* a = static_cast<const uint16_t*>(p.a) + first_row * p.lda;
  GemmBlock block{a, p.lda, rows, 0, tile};
  const bool fp8 = w.format() == MatrixFormat::kFp8;
  const int step = fp8 ? kScaleBlock : kBlockK;
  for (int k = 0; k < w.k(); k += step) {
    block.a = a + k;
    block.num_pairs = (std::min(step, w.k() - k) + 1) / 2;
    if (fp8) {
      const auto* data = static_cast<const uint8_t*>(w.panel(panel));
      kernels_.gemm_fp8(block, data + k * kPanelColumns, w.scales(panel)[k / kScaleBlock], expanded);
    } else {
      kernels_.gemm_bf16(block, static_cast<const uint16_t*>(w.panel(panel)) + k * kPanelColumns);
    }
  }
}

void Gemm::write(const GemmProblem& p, int panel, int first_row, int rows, const Scratch& scratch) {
  const int first = panel * kPanelColumns;
  const int columns = std::min(kPanelColumns, p.weight->n() - first);
  const bool pad = p.pad_pair && columns % 2 != 0;
  for (int r = 0; r < rows; ++r) {
    const float* tile = scratch.tile + r * kPanelColumns;
    const int64_t to = (first_row + r) * p.ldo + first;
    if (p.out_f32 != nullptr) {
      std::memcpy(p.out_f32 + to, tile, columns * sizeof(float));
    } else if (p.up != nullptr) {
      kernels_.silu_mul(tile, scratch.up_tile + r * kPanelColumns, columns, p.out_bf16 + to);
    } else {
      kernels_.to_bf16(tile, columns, p.out_bf16 + to);
    }
    if (pad) p.out_bf16[to + columns] = 0;
  }
}

}  // namespace manta::backend::cpu
