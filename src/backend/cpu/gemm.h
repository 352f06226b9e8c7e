// C = A * W^T for one matrix or many at once, on the thread team. A piece of work is one panel of 64 columns and a
// block of rows; what it computes per element is the kernels' contract (kernels.h), so neither the cut nor the thread
// shows in a bit.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/cpu/kernels.h"
#include "backend/cpu/packed_weights.h"
#include "backend/host/thread_team.h"

namespace manta::backend::cpu {

struct GemmProblem {
  const PackedMatrix* weight = nullptr;
  const PackedMatrix* up = nullptr;  // not null: out = silu(A * weight^T) * (A * up^T), both of one shape and format
  const void* a = nullptr;           // [rows][lda]: float32 for kF32 weights, else bf16, zero behind an odd k
  int64_t lda = 0;
  int rows = 0;
  float* out_f32 = nullptr;  // [rows][ldo], or
  uint16_t* out_bf16 = nullptr;
  int64_t ldo = 0;
  bool pad_pair = false;  // out_bf16 feeds a GEMM: where n is odd, write a zero behind it

  int64_t first_piece = 0;  // filled by run()
};

class Gemm {
 public:
  // Scratch for every thread of the team.
  Gemm(const Kernels& kernels, host::ThreadTeam& team);

  // Runs all problems; those with no rows are skipped. No problem may read what another one writes.
  void run(std::span<GemmProblem> problems);
  size_t scratch_bytes() const { return scratch_.size() * sizeof(float); }

 private:
  struct Scratch {
    float* tile;
    float* up_tile;
    uint16_t* expanded;
  };
  Scratch scratch(int thread);
  void run_piece(const GemmProblem& problem, int64_t piece, const Scratch& scratch);
  void multiply(const PackedMatrix& weight, const GemmProblem& problem, int panel, int first_row, int rows, float* tile,
                uint16_t* expanded);
  void write(const GemmProblem& problem, int panel, int first_row, int rows, const Scratch& scratch);

  const Kernels& kernels_;
  host::ThreadTeam& team_;
  std::vector<float> scratch_;
};

// Nanoseconds of work below which waking another thread costs more than it saves. Tuned by bench/cpu_decode_bench with
// one stream on two cores.
inline constexpr int64_t kWorthWakingNs = 50000;

// How many of `pieces` equal ones a thread should take at a time, given what all of them cost.
int64_t grain_for(int64_t pieces, int64_t total_ns, int num_threads);

}  // namespace manta::backend::cpu
