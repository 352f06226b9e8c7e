#include "model/overlap.h"

#include <cassert>
#include <cstddef>

namespace manta::model {

using backend::ModelShape;

namespace {

// A microbatch's walk is a row of segments, three for each MoE layer:
//   A  (combine received, merged, …) attention, route, dispatch sent
//   S  shared expert
//   E  dispatch received, experts, combine sent
// Two microbatches go A0 A1 E0 S0 S1 E1, so that each one's traffic runs under the other's compute: dispatch of 0 under
// A1, combine of 1 under A0 of the next layer. Dispatch of 1 and combine of 0 are both in flight from E0 to E1, under
// one part of the experts each; the shared experts stand there because they lengthen both. Where attention takes longer
// than the experts this is the best of all orders of these segments (bench/dbo_orders.py tries them).
using Segment = StageOrder;

class SegmentBuilder {
 public:
  explicit SegmentBuilder(int microbatch) : microbatch_(microbatch), segments_(1) {}

  void call(Stage stage, int layer = -1) { segments_.back().push_back({microbatch_, stage, layer}); }
  void cut() { segments_.emplace_back(); }
  std::vector<Segment> take() { return std::move(segments_); }

 private:
  int microbatch_;
  std::vector<Segment> segments_;
};

void add_layer(SegmentBuilder& to, const ModelShape& shape, int layer) {
  to.call(Stage::kAttnProject, layer);
  to.call(Stage::kAttnAttend, layer);
  if (!shape.is_moe_layer(layer)) return to.call(Stage::kDenseMlp, layer);
  to.call(Stage::kRoute, layer);
  to.call(Stage::kDispatchStart, layer);
  to.cut();
  if (shape.n_shared_experts > 0) to.call(Stage::kSharedExpert, layer);
  to.cut();
  to.call(Stage::kDispatchFinish, layer);
  to.call(Stage::kExperts, layer);
  to.call(Stage::kCombineStart, layer);
  to.cut();
  to.call(Stage::kCombineFinish, layer);
  to.call(Stage::kMerge, layer);
}

std::vector<Segment> segments_of(const ModelShape& shape, int microbatch) {
  SegmentBuilder to(microbatch);
  to.call(Stage::kGatherInputs);
  to.call(Stage::kEmbed);
  for (int layer = 0; layer < shape.num_hidden_layers; ++layer) add_layer(to, shape, layer);
  to.call(Stage::kHead);
  to.call(Stage::kSample);
  if (shape.num_mtp_layers > 0) {
    to.call(Stage::kMtpInput);
    add_layer(to, shape, shape.num_hidden_layers);
    to.call(Stage::kMtpDraft);
  }
  return to.take();
}

}  // namespace

const char* to_string(Stage stage) {
  switch (stage) {
    case Stage::kGatherInputs: return "gather_inputs";
    case Stage::kEmbed: return "embed";
    case Stage::kAttnProject: return "attn_project";
    case Stage::kAttnAttend: return "attn_attend";
    case Stage::kDenseMlp: return "dense_mlp";
    case Stage::kRoute: return "route";
    case Stage::kDispatchStart: return "dispatch_start";
    case Stage::kSharedExpert: return "shared_expert";
    case Stage::kDispatchFinish: return "dispatch_finish";
    case Stage::kExperts: return "experts";
    case Stage::kCombineStart: return "combine_start";
    case Stage::kCombineFinish: return "combine_finish";
    case Stage::kMerge: return "merge";
    case Stage::kHead: return "head";
    case Stage::kSample: return "sample";
    case Stage::kMtpInput: return "mtp_input";
    case Stage::kMtpDraft: return "mtp_draft";
  }
  return "?";
}

StageOrder make_stage_order(const ModelShape& shape, int num_microbatches) {
  assert(num_microbatches == 1 || num_microbatches == 2);
  StageOrder order;
  const auto append = [&order](const Segment& s) { order.insert(order.end(), s.begin(), s.end()); };
  const std::vector<Segment> first = segments_of(shape, 0);
  if (num_microbatches == 1) {
    for (const Segment& segment : first) append(segment);
    return order;
  }
  const std::vector<Segment> second = segments_of(shape, 1);
  for (size_t a = 0; a < first.size(); a += 3) {
    append(first[a]);
    append(second[a]);
    if (a + 1 == first.size()) break;  // behind the last MoE layer
    for (const Segment& segment : {first[a + 2], first[a + 1], second[a + 1], second[a + 2]}) append(segment);
  }
  return order;
}

}  // namespace manta::model
