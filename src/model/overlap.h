// The order in which a step's stages are called, as data: (microbatch, stage, layer). With one microbatch it is the
// model from top to bottom; with two (DBO), one microbatch's expert traffic is in flight while the other computes. No
// threads express the order: one host thread walks the list, and a step that cannot be split walks the other list.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/model_shape.h"

namespace manta::model {

enum class Stage : uint8_t {
  kGatherInputs,
  kEmbed,
  kAttnProject,
  kAttnAttend,
  kDenseMlp,
  kRoute,
  kDispatchStart,
  kSharedExpert,
  kDispatchFinish,
  kExperts,
  kCombineStart,
  kCombineFinish,
  kMerge,
  kHead,
  kSample,
  kMtpInput,
  kMtpDraft,
};

const char* to_string(Stage stage);  // "attn_project", …

struct StageCall {
  int microbatch = 0;
  Stage stage = Stage::kGatherInputs;
  int layer = -1;  // of the model; num_hidden_layers = the MTP module; -1 outside the layers
  auto operator<=>(const StageCall&) const = default;
};
using StageOrder = std::vector<StageCall>;

// Every stage of one step. num_microbatches: 1, or 2 for the overlapped order. In both, a microbatch's own calls stand
// in the order of the unsplit model, but for the shared expert, which may run at any time between dispatch and merge;
// and a layer's cache rows of microbatch 0 are written before microbatch 1 attends (a prompt may be cut between the
// two).
StageOrder make_stage_order(const backend::ModelShape& shape, int num_microbatches);

}  // namespace manta::model
