// The inner loops of the cpu backend as a table of functions: one table per instruction set, chosen once at start-up.
// Each target_*.cc compiles the same sources (simd_*.inc, gemm.inc, attention.inc, rows.inc) inside its own namespace.
//
// The contract of every kernel here is batch invariance: a value of the output is computed by a fixed sequence of
// operations that depends on its own row and column only. How many rows there are, how the caller cuts them into calls
// and which thread makes the call change no bit. (Tables of different instruction sets do differ in rounding.)
//
// Conventions: bf16 is uint16_t. A "pair" is two neighbours of the reduction axis in one 32-bit lane. A panel is 64
// output columns of a weight matrix. Kernels read nothing beyond what they are given, except that rows of A are read
// to the end of their last pair (an odd K needs a zero behind it).
#pragma once

#include <cstdint>

namespace manta::backend::cpu {

inline constexpr int kPanelColumns = 64;
inline constexpr int kScaleBlock = 128;  // of FP8 checkpoints: one scale per 128 x 128 weights
inline constexpr int kKeyTile = 64;      // keys that attention takes at a time, cut at multiples of 64 positions
inline constexpr int kKeysAhead = 8;     // how far ahead of their use keys are brought near

// C[r][j] += sum over k of A[r][k] * W[j][k], for the 64 columns of one panel and one block of K.
struct GemmBlock {
  const uint16_t* a = nullptr;  // [rows][lda] bf16, at the block's first k
  int64_t lda = 0;
  int rows = 0;
  int num_pairs = 0;   // of the block; FP8: at most kScaleBlock / 2
  float* c = nullptr;  // [rows][64]
};

// Weights of a panel, see packed_matrix.h. The products of one column are added in the order of k into one float32.
//   bf16: continues the sum that c holds, so how K is cut into blocks does not show.
//   FP8:  sums its block alone, then c = fma(sum, scale, c): blocks are the checkpoint's scale blocks.
//   f32:  like bf16, with A in float32 (num_pairs counts single k here).
// `expanded` is scratch of kScaleBlock * 64 values; where it lies in L1, many rows share one expansion.
using GemmBf16Fn = void (*)(const GemmBlock& block, const uint16_t* panel);
using GemmFp8Fn = void (*)(const GemmBlock& block, const uint8_t* panel, float scale, uint16_t* expanded);
using GemmF32Fn = void (*)(const float* a, int64_t lda, int rows, int num_k, const float* panel, float* c);

// Scores of `rows` queries against the keys of one tile: s[r][j] = q[r] . key[j]; columns from num_keys on: anything.
struct ScoreTile {
  const uint16_t* const* q = nullptr;  // [rows] pointers to `width` bf16
  int rows = 0;
  // [kKeyTile + kKeysAhead] pointers to `width` bf16, all readable; those behind num_keys are the tile's to come (or
  // any).
  const uint16_t* const* keys = nullptr;
  int num_keys = 0;
  int width = 0;
  float* scores = nullptr;  // [rows][kKeyTile]
};

// One step of the online softmax, row by row. num_visible[r] keys of the tile count for row r (0 is allowed, and then
// leaves the row as it was).
struct SoftmaxTile {
  const float* scores = nullptr;  // [rows][kKeyTile]
  int rows = 0;
  const int32_t* num_visible = nullptr;  // [rows]
  int num_keys = 0;                      // max of num_visible
  float scale = 1.0f;
  float* max = nullptr;         // [rows] running maximum of scale * score, -inf at first
  float* sum = nullptr;         // [rows] running sum of the (bf16) weights
  float* rescale = nullptr;     // [rows] out: what earlier contributions shrink by
  uint16_t* weights = nullptr;  // [rows][kKeyTile] out: bf16, 0 for keys that do not count, to the end of the pair
};

// out[r][c] = out[r][c] * rescale[r] + sum over j of weights[r][j] * value[j][c]
struct ValueTile {
  const uint16_t* weights = nullptr;  // [rows][kKeyTile] bf16
  int rows = 0;
  const uint16_t* const* values = nullptr;  // [num_keys] pointers to `width` bf16
  int num_keys = 0;
  int width = 0;
  const float* rescale = nullptr;  // [rows]
  float* out = nullptr;            // [rows][ldo]
  int64_t ldo = 0;
  uint16_t* interleaved = nullptr;  // scratch, [kKeyTile * 64]
};

struct Kernels {
  const char* name;  // "avx512_bf16"
  GemmBf16Fn gemm_bf16;
  GemmFp8Fn gemm_fp8;
  GemmF32Fn gemm_f32;
  void (*scores)(const ScoreTile& tile);
  void (*softmax)(const SoftmaxTile& tile);
  void (*values)(const ValueTile& tile);

  // Rows of n floats. Pads: bf16 rows that feed a GEMM are written to round_up(n, 2), with a zero.
  // x += add (when not null); normed = x / sqrt(mean(x^2) + eps) * gain, in f32 (when not null) and bf16 (likewise).
  void (*add_rmsnorm)(float* x, const float* add, const float* gain, int n, float eps, float* normed_f32,
                      uint16_t* normed_bf16);
  void (*to_bf16)(const float* in, int n, uint16_t* out);                      // nearest even
  void (*from_bf16)(const uint16_t* in, int n, float* out);                    // exact
  void (*silu_mul)(const float* gate, const float* up, int n, uint16_t* out);  // gate * sigmoid(gate) * up
  void (*scale_to_bf16)(const float* in, float factor, int n, uint16_t* out);
  void (*add)(const float* a, const float* b, int n, float* out);
  void (*scale_add)(float* acc, float acc_factor, const float* x, float x_factor, int n);  // acc*f + x*g
};

// E4M3 magnitudes 0..127 as bf16: 128 low bytes, then 128 high bytes. The sign bit stays where it is.
const uint8_t* fp8_to_bf16_bytes();

// Those this processor and operating system can run, slowest first. Never empty.
struct TargetList {
  const Kernels* tables[4];
  int count = 0;
};
TargetList available_kernels();
const Kernels& best_kernels();

}  // namespace manta::backend::cpu
