#include "model/driver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "fake_backend.h"
#include "model/loader.h"
#include "test_checkpoint.h"

namespace manta::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Call = FakeBackend::Call;

// Writes the halves down in the backend's list, so that one order holds both.
class FakeTransport : public ep::ExpertTransport {
 public:
  struct Handle : ep::DispatchHandle {
    int microbatch = 0;
  };
  explicit FakeTransport(FakeBackend& backend) : backend_(backend) { handles_[1].microbatch = 1; }
  ep::ExpertLayout layout() const override { return ep::ExpertLayout::kContiguous; }
  size_t buffer_bytes(const ep::MoeShape&, int, int) const override { return 0; }
  Status configure(const ep::EpTopology&, const ep::MoeShape&, int, int) override { return {}; }
  ep::DispatchHandle& handle(int microbatch) override { return handles_[microbatch]; }
  void dispatch_start(Lane&, ep::DispatchHandle& h, const ep::Routed& r) override {
    note(h, "dispatch_start", r.layer);
    rows_sent.push_back(static_cast<int>(r.topk_id.shape[0]));
    more_ = r.more;
    EXPECT_EQ(r.hidden.shape[0], r.topk_weight.shape[0]);
  }
  void dispatch_finish(Lane&, ep::DispatchHandle& h, ep::ExpertBatch& batch) override {
    note(h, "dispatch_finish");
    batch.more = more_ || rows_sent.size() < peer_rounds;
  }
  void combine_start(Lane&, ep::DispatchHandle& h, const ep::ExpertBatch&) override { note(h, "combine_start"); }
  void combine_finish(Lane&, ep::DispatchHandle& h, Tensor out) override {
    note(h, "combine_finish");
    rows_back.push_back(static_cast<int>(out.shape[0]));
  }
  void abort(Epoch) override {}
  Status status() const override { return {}; }

  std::vector<int> rows_sent, rows_back;
  size_t peer_rounds = 0;  // of another rank

 private:
  void note(ep::DispatchHandle& h, const char* stage, int layer = -1) {
    backend_.calls.push_back({static_cast<Handle&>(h).microbatch, stage, layer});
  }
  FakeBackend& backend_;
  Handle handles_[2];
  bool more_ = false;
};

struct Hook : LayerHook {
  explicit Hook(FakeBackend& b) : backend(b) {}
  void before_attention(Lane& lane, int layer) override {
    backend.calls.push_back({backend.lane_number(lane), "before", layer});
  }
  void after_cache_write(Lane& lane, int layer) override {
    backend.calls.push_back({backend.lane_number(lane), "after", layer});
  }
  FakeBackend& backend;
};

class Driver : public ::testing::Test {
 protected:
  static constexpr int kMaxTokens = 8;

  void make(bool mtp, int microbatches = 1, nlohmann::json json = small_config()) {
    config_ = config_of(json, mtp);
    const auto map = ep::linear_expert_map(num_moe_rows(config_.shape), config_.shape.n_routed_experts, 0, 1, Epoch{1});
    ASSERT_TRUE(map.ok());
    map_ = *map;
    const auto source = make_dummy_weights(config_, 1);
    auto weights = load_weights(config_, *source, backend_, {{&map_, 0, 1}, 1, {}});
    ASSERT_TRUE(weights.ok()) << weights.error().message;
    weights_ = std::move(*weights);
    parts_ = {&backend_, &config_, weights_.get(), &map_, &transport_, {}, &clock_, nullptr, 0};
    for (int i = 0; i < microbatches; ++i) parts_.activations.push_back(&activations(i));
  }
  backend::Activations& activations(int i) {
    backend::Activations& act = act_[i];
    act.moe_input = make_tensor(memory_, DType::kF32, {kMaxTokens, config_.shape.hidden_size});
    act.combined = act.moe_input;
    act.topk_id = make_tensor(memory_, DType::kI32, {kMaxTokens, config_.shape.num_experts_per_tok});
    act.topk_weight = make_tensor(memory_, DType::kF32, {kMaxTokens, config_.shape.num_experts_per_tok});
    return act;
  }
  void run(std::vector<int> tokens) {
    auto driver = LayerDriver::make(parts_);
    ASSERT_TRUE(driver.ok()) << driver.error().message;
    std::vector<backend::StepView> views(tokens.size());
    for (size_t i = 0; i < tokens.size(); ++i) {
      views[i].microbatch = static_cast<int>(i);
      views[i].num_tokens = tokens[i];
    }
    (*driver)->run(views);
  }
  std::vector<std::string> stages() const {
    std::vector<std::string> names;
    for (const Call& call : backend_.calls) names.push_back(call.stage);
    return names;
  }

  FakeBackend backend_;
  FakeTransport transport_{backend_};
  StageClock clock_;
  ModelConfig config_;
  ep::ExpertMap map_;
  std::unique_ptr<Weights> weights_;
  backend::Activations act_[2];
  char memory_[4096] = {};
  DriverParts parts_;
};

TEST_F(Driver, WalksTheModel) {
  make(/*mtp=*/false);
  run({3});
  EXPECT_THAT(stages(), ElementsAre("gather", "embed", "attn_project", "attn_attend", "dense_mlp", "attn_project+add",
                                    "attn_attend", "route", "dispatch_start", "shared_expert", "dispatch_finish",
                                    "experts", "combine_start", "combine_finish", "merge", "head", "sample"));
  EXPECT_THAT(transport_.rows_sent, ElementsAre(3));
  EXPECT_THAT(transport_.rows_back, ElementsAre(3));
}

TEST_F(Driver, MtpRunsItsOwnLayerOnItsOwnStreams) {
  make(/*mtp=*/true);
  run({2});
  const std::vector<std::string> all = stages();
  const auto mtp = std::find(all.begin(), all.end(), "mtp_input");
  ASSERT_NE(mtp, all.end());
  // "attn_project" without +add: the module's residual stream begins anew.
  EXPECT_THAT(std::vector<std::string>(mtp, all.end()),
              ElementsAre("mtp_input", "attn_project", "attn_attend", "route", "dispatch_start", "shared_expert",
                          "dispatch_finish", "experts", "combine_start", "combine_finish", "merge", "mtp_draft"));
  // Main MoE layer 1 is row 0 of the expert map, the module's layer 2 is row 1.
  std::vector<int> map_rows;
  for (const Call& call : backend_.calls) {
    if (call.stage == "route" || call.stage == "dispatch_start") map_rows.push_back(call.layer);
  }
  EXPECT_THAT(map_rows, ElementsAre(0, 0, 1, 1));
}

TEST_F(Driver, EachLayerHasItsOwnCache) {
  make(/*mtp=*/true);
  run({1});
  std::vector<int> layers;
  for (const Call& call : backend_.calls) {
    if (call.stage == "attn_attend") layers.push_back(call.layer);
  }
  EXPECT_THAT(layers, ElementsAre(0, 1, 2)) << "2 is the MTP module's";
}

TEST_F(Driver, WithoutSharedExperts) {
  nlohmann::json json = small_config();
  json["n_shared_experts"] = nullptr;
  make(false, 1, json);
  run({1});
  EXPECT_THAT(stages(), ::testing::Not(::testing::Contains("shared_expert")));
}

TEST_F(Driver, TwoMicrobatchesCallTheSameStages) {
  make(/*mtp=*/true, 2);
  run({3});
  std::vector<Call> whole = std::move(backend_.calls);
  backend_.calls.clear();
  run({3, 2});
  // The shared expert has its own place in a split step: overlap_test.cc.
  const auto is_shared = [](const Call& c) { return c.stage == "shared_expert"; };
  const auto num_shared = std::erase_if(whole, is_shared);
  EXPECT_EQ(std::ranges::count_if(backend_.calls, is_shared), 2 * num_shared);
  std::erase_if(backend_.calls, is_shared);
  for (const int microbatch : {0, 1}) {
    std::vector<Call> part;
    for (Call call : backend_.calls) {
      if (call.microbatch != microbatch) continue;
      call.microbatch = 0;
      part.push_back(call);
    }
    EXPECT_EQ(part, whole) << microbatch;
  }
  // Not one after the other: the second has begun before the first's experts run.
  const auto first_of_second =
      std::find_if(backend_.calls.begin(), backend_.calls.end(), [](const Call& c) { return c.microbatch == 1; });
  const auto first_experts =
      std::find_if(backend_.calls.begin(), backend_.calls.end(), [](const Call& c) { return c.stage == "experts"; });
  EXPECT_LT(first_of_second, first_experts);
}

TEST_F(Driver, NoRowsStillTakesPartInTheCollectives) {
  make(/*mtp=*/false);
  run({0});
  EXPECT_THAT(stages(), ElementsAre("dispatch_start", "dispatch_finish", "experts", "combine_start", "combine_finish"));
  EXPECT_THAT(transport_.rows_sent, ElementsAre(0));
}

TEST_F(Driver, ManyRowsGoInRounds) {
  make(/*mtp=*/false);
  parts_.max_tokens_per_round = 3;
  run({7});
  EXPECT_THAT(transport_.rows_sent, ElementsAre(3, 3, 1));
  EXPECT_THAT(transport_.rows_back, ElementsAre(3, 3, 1));
  EXPECT_THAT(stages(), ElementsAre("gather", "embed", "attn_project", "attn_attend", "dense_mlp", "attn_project+add",
                                    "attn_attend", "route", "dispatch_start", "shared_expert", "dispatch_finish",
                                    "experts", "combine_start", "combine_finish", "dispatch_start", "dispatch_finish",
                                    "experts", "combine_start", "combine_finish", "dispatch_start", "dispatch_finish",
                                    "experts", "combine_start", "combine_finish", "merge", "head", "sample"));
}

TEST_F(Driver, RoundsGoOnAsLongAsAnyRankHasRows) {
  make(/*mtp=*/false);
  parts_.max_tokens_per_round = 3;
  transport_.peer_rounds = 3;
  run({2});
  EXPECT_THAT(transport_.rows_sent, ElementsAre(2, 0, 0));
  EXPECT_THAT(transport_.rows_back, ElementsAre(2, 0, 0));
}

TEST_F(Driver, TheHookSeesEveryLayersCache) {
  make(/*mtp=*/true);
  Hook hook(backend_);
  parts_.hook = &hook;
  run({1});
  std::vector<Call> seen;
  for (size_t i = 0; i < backend_.calls.size(); ++i) {
    if (backend_.calls[i].stage != "before") continue;
    seen.push_back(backend_.calls[i]);
    EXPECT_THAT(backend_.calls[i + 1].stage, HasSubstr("attn_project"));
    EXPECT_EQ(backend_.calls[i + 2].stage, "after");
    EXPECT_EQ(backend_.calls[i + 2].layer, backend_.calls[i].layer);
  }
  EXPECT_THAT(seen, ElementsAre(Call{0, "before", 0}, Call{0, "before", 1}, Call{0, "before", 2}));
}

TEST_F(Driver, TheClockNamesTheStage) {
  make(/*mtp=*/false);
  struct Peek : LayerHook {
    explicit Peek(StageClock& c) : clock(c) {}
    void before_attention(Lane&, int) override { readings.push_back(clock.read()); }
    void after_cache_write(Lane&, int) override {}
    StageClock& clock;
    std::vector<StageClock::Reading> readings;
  } peek(clock_);
  parts_.hook = &peek;
  clock_.begin_step(41);
  run({1});
  clock_.end_step();
  ASSERT_EQ(peek.readings.size(), 2u);
  EXPECT_EQ(peek.readings[1].step, 41u);
  EXPECT_EQ(peek.readings[1].layer, 1);
  EXPECT_STREQ(peek.readings[1].stage, "attn_project");
  EXPECT_GT(peek.readings[1].counter, peek.readings[0].counter);
  EXPECT_STREQ(clock_.read().stage, "idle");
}

TEST_F(Driver, PartsMustFit) {
  make(/*mtp=*/false);
  DriverParts parts = parts_;
  parts.transport = nullptr;
  EXPECT_THAT(LayerDriver::make(parts).error().message, HasSubstr("transport"));
  parts = parts_;
  parts.activations.clear();
  EXPECT_THAT(LayerDriver::make(parts).error().message, HasSubstr("0 microbatches"));
  ASSERT_TRUE(enable_mtp(config_).ok());
  EXPECT_THAT(LayerDriver::make(parts_).error().message, HasSubstr("weights of 2 layers"));
}

}  // namespace
}  // namespace manta::model
