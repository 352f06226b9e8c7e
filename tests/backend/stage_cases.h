// One list of cases that takes a backend through every stage, each stage against `ref` with the same inputs: after a
// stage was compared, the backend under test continues from ref's values, so an error shows where it was made.
//
// Memory is hostile: every buffer starts as NaN (0xff), as do all cache rows no token was written to, and what lies
// beyond a step's rows must still be 0xff afterwards. For a backend on a device, Access moves the bytes.
#pragma once

#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace manta::backend::testing {

// What a backend promises. Relative error of a row: |a - b| / |b| in the Euclidean norm, b from ref.
struct StageBounds {
  double stream = 0;         // every stage that writes [T, D]: largest relative error of a row
  double cache = 0;          // latent rows, likewise
  double logits = 0;         // largest |a - b| of a row over the range of b
  double router_margin = 0;  // expert ids are equal wherever ref's choice is decided by more than this
  double topk_weight = 0;    // largest |a - b| where the ids are equal
};

// Bytes between the test and a backend's tensors. The default is for memory the host can see.
struct Access {
  std::function<void(void* to, const Tensor& from)> read = [](void* to, const Tensor& from) {
    std::memcpy(to, from.data, from.num_elements() * dtype_bytes(from.dtype));
  };
  std::function<void(const Tensor& to, const void* from)> write = [](const Tensor& to, const void* from) {
    std::memcpy(to.data, from, to.num_elements() * dtype_bytes(to.dtype));
  };
  // Memory that the backend's stages can read and write.
  std::function<std::shared_ptr<void>(size_t)> allocate = [](size_t num_bytes) {
    return std::shared_ptr<void>(std::malloc(num_bytes + 1), std::free);
  };
};

struct Subject {
  std::function<Result<std::unique_ptr<Backend>>()> make;
  StageBounds bounds;
  Access access;
  std::string fp8_activations = "none";  // of ref; make() must make its backend likewise
};

// A slice of a case: `history` tokens are in the cache already, then num_rows rows.
struct CaseSlice {
  int history = 0;
  int num_rows = 1;
  bool decode = false;  // rows are the last token and drafts, else a prefill slice
};

struct StageCase {
  static constexpr int kMaxModelLen = 512;

  std::string name;
  ModelShape shape;
  std::vector<CaseSlice> slices;
  int padded_num_tokens = 0;
  DType weight_dtype = DType::kF8E4M3;  // of the linear layers
  bool one_expert_takes_all = false;    // the correction bias sends every token to the same experts
  int num_threads = 2;
  int max_model_len = kMaxModelLen;
};

std::vector<StageCase> stage_cases();

// The whole list as GoogleTest expectations, one SCOPED_TRACE per case and stage.
void run_stage_cases(const Subject& subject);
void run_stage_case(const StageCase& stage_case, const Subject& subject);

// What experts are chosen by, in double: sigmoid or softmax of the router logits, plus the bias (null = none).
std::vector<double> biased_scores(const ModelShape& shape, const float* router_logits, const float* correction_bias);

// How far from another outcome ref's choice of experts was: the smallest gap between chosen and not chosen, of groups
// and of experts, in biased scores. Infinite when there was no alternative.
double routing_margin(const ModelShape& shape, const float* router_logits, const float* correction_bias);

}  // namespace manta::backend::testing
