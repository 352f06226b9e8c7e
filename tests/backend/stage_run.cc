// Takes one case through the stages of two backends side by side.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "backend/host/float_formats.h"
#include "backend/ref/loops.h"
#include "backend/ref/ref_backend.h"
#include "backend/ref/ref_weights.h"
#include "random_weights.h"
#include "stage_cases.h"
#include "stage_tensors.h"

namespace manta::backend::testing {
namespace {

constexpr int kBlockSize = 16;

// One backend with everything it needs.
struct Rig {
  Access access;
  std::unique_ptr<Backend> backend;
  PackedModel model;
  std::unique_ptr<Activations> act;
  std::vector<StepView> views;

  Lane& lane() { return backend->lane(0); }
  StepView& view() { return views[0]; }
};

class CaseRun {
 public:
  CaseRun(const StageCase& stage_case, const Subject& subject)
      : case_(stage_case),
        bounds_(subject.bounds),
        map_(*ep::linear_expert_map(2, stage_case.shape.n_routed_experts, 0, 1, {})) {
    make_ref_ = [&] {
      return ref::make_ref_backend({.num_threads = stage_case.num_threads, .fp8_activations = subject.fp8_activations});
    };
    bias_ = make_bias();
    set_up(ref_, make_ref_, {});
    set_up(own_, subject.make, subject.access);
  }

  void run() {
    if (::testing::Test::HasFatalFailure() || ref_.views.empty() || own_.views.empty()) return;
    metadata();
    embed();
    attention(0);
    dense_mlp();
    attention(1);
    route();
    moe();
    head();
    sample();
    mtp();
    beyond_the_step();
  }

 private:
  std::vector<float> make_bias() const {
    std::vector<float> bias(case_.shape.n_routed_experts);
    std::mt19937 rng(7);
    std::normal_distribution<float> normal(0.0f, 0.05f);
    for (float& b : bias) b = normal(rng);
    if (case_.one_expert_takes_all) {
      for (int e = 0; e < case_.shape.num_experts_per_tok; ++e) bias[e] = 5.0f;
    }
    return bias;
  }

  void set_up(Rig& rig, const std::function<Result<std::unique_ptr<Backend>>()>& make, const Access& access);
  void admit(Rig& rig);
  void fill_cache(Rig& rig);
  std::vector<int> blocks_of(int slice) const;
  int num_rows() const {
    return std::accumulate(case_.slices.begin(), case_.slices.end(), 0,
                           [](int n, const CaseSlice& s) { return n + s.num_rows; });
  }
  void add_live_rows();

  template <typename Stage>
  void both(Stage&& stage) {
    stage(ref_);
    stage(own_);
  }
  // Gives `own` ref's values (rounded to its dtype), then ref what was really written.
  void hand_over(Tensor Activations::*tensor) { hand_over(ref_.act.get()->*tensor, own_.act.get()->*tensor); }
  void hand_over(const Tensor& from, const Tensor& to) {
    if (from.data == nullptr) return;
    write_floats(ref_.access, from, write_floats(own_.access, to, read_floats(ref_.access, from)));
  }
  void hand_over(Hidden Activations::*hidden) {
    Hidden &from = ref_.act.get()->*hidden, &to = own_.act.get()->*hidden;
    hand_over(from.hidden, to.hidden);
    if (from.residual_valid) hand_over(from.residual, to.residual);
  }
  void compare(const char* what, Tensor (*pick)(Activations&), double bound) {
    const Tensor a = pick(*own_.act), b = pick(*ref_.act);
    expect_close(what, read_floats(own_.access, a), read_floats(ref_.access, b), b.shape[1], live_, bound);
  }
  static Tensor hidden_of(Activations& act) { return act.hidden.hidden; }
  static Tensor residual_of(Activations& act) { return act.hidden.residual; }

  void metadata();
  void embed();
  void attention(int layer);
  void compare_cache(int layer);
  void dense_mlp();
  void route();
  void moe();
  void experts(ep::ExpertLayout layout, const std::vector<int>& counts);
  void head();
  void sample();
  void mtp();
  void beyond_the_step();

  const StageCase& case_;
  StageBounds bounds_;
  ep::ExpertMap map_;
  std::vector<float> bias_;
  std::function<Result<std::unique_ptr<Backend>>()> make_ref_;
  Rig ref_, own_;
  std::vector<int> live_;  // rows with a position
};

std::vector<int> CaseRun::blocks_of(int slice) const {
  // Blocks in falling order, so that a sequence is nowhere contiguous.
  const int per_slot = (case_.max_model_len + kBlockSize - 1) / kBlockSize;
  std::vector<int> blocks(per_slot);
  for (int i = 0; i < per_slot; ++i) blocks[i] = (slice + 1) * per_slot - 1 - i;
  return blocks;
}

void CaseRun::set_up(Rig& rig, const std::function<Result<std::unique_ptr<Backend>>()>& make, const Access& access) {
  rig.access = access;
  auto backend = make();
  ASSERT_TRUE(backend.ok()) << backend.error().message;
  rig.backend = std::move(*backend);
  const int rows = std::max({num_rows(), case_.padded_num_tokens, 1}) + 3;  // some that no step uses
  const Limits limits = {.max_num_seqs = static_cast<int>(case_.slices.size()) + 1,
                         .max_num_tokens = rows,
                         .max_model_len = case_.max_model_len,
                         .num_speculative_tokens = 1};
  Status status = rig.backend->init(case_.shape, limits);
  ASSERT_TRUE(status.ok()) << status.error().message;
  rig.model = RandomWeights(case_.shape, case_.weight_dtype, 1).pack(*rig.backend, bias_);
  const kv::CacheGeometry geometry = {
      .num_layers = case_.shape.num_layers(),
      .num_blocks = limits.max_num_seqs * ((case_.max_model_len + kBlockSize - 1) / kBlockSize),
      .block_size = kBlockSize,
      .kv_lora_rank = case_.shape.kv_lora_rank,
      .qk_rope_head_dim = case_.shape.qk_rope_head_dim,
      .dtype = rig.backend->caps().cache_dtype};
  status = rig.backend->make_cache(geometry);
  ASSERT_TRUE(status.ok()) << status.error().message;
  auto act = rig.backend->make_activations();
  ASSERT_TRUE(act.ok()) << act.error().message;
  rig.act = std::move(*act);
  Activations& a = *rig.act;
  for (Tensor* t : {&a.hidden.hidden, &a.hidden.residual, &a.mtp.hidden, &a.mtp.residual, &a.final_hidden, &a.moe_input,
                    &a.topk_id, &a.topk_weight, &a.combined, &a.shared_out, &a.logits}) {
    fill(access, *t, 0xff);
  }
  fill_cache(rig);
  admit(rig);
}

void CaseRun::fill_cache(Rig& rig) {
  std::mt19937 rng(11);
  std::normal_distribution<float> normal;
  for (int layer = 0; layer < case_.shape.num_layers(); ++layer) {
    const Tensor rows = rig.backend->cache_layer(layer).rows;
    fill(rig.access, rows, 0xff);
    std::vector<float> values = read_floats(rig.access, rows);
    const int64_t width = rows.shape[2];
    for (size_t s = 0; s < case_.slices.size(); ++s) {
      const auto blocks = blocks_of(static_cast<int>(s));
      for (int p = 0; p < case_.slices[s].history; ++p) {
        float* row = &values[(int64_t{blocks[p / kBlockSize]} * kBlockSize + p % kBlockSize) * width];
        // Values every cache dtype holds exactly, so that all backends start from the same history.
        for (int64_t c = 0; c < width; ++c) row[c] = host::round_to_e4m3(normal(rng));
      }
    }
    write_floats(rig.access, rows, values);
  }
}

// Two steps: the first gives decode slots the draft they will verify, by sampling from logits the test writes.
void CaseRun::admit(Rig& rig) {
  sample::SamplingParams greedy;
  greedy.temperature = 0.0f;
  std::vector<std::vector<TokenId>> tokens;
  std::vector<std::vector<int>> blocks;
  std::vector<SlotAdmission> admitted;
  std::vector<RowSlice> first, second;
  std::mt19937 rng(13);
  const auto token = [&] { return static_cast<TokenId>(rng() % case_.shape.vocab_size); };
  for (size_t i = 0; i < case_.slices.size(); ++i) {
    const CaseSlice& s = case_.slices[i];
    auto& t = tokens.emplace_back(s.decode ? s.history : s.history + s.num_rows);
    for (TokenId& id : t) id = token();
    blocks.push_back(blocks_of(static_cast<int>(i)));
  }
  for (size_t i = 0; i < case_.slices.size(); ++i) {
    const CaseSlice& s = case_.slices[i];
    const auto slot = static_cast<SlotId>(i);
    admitted.push_back({slot, tokens[i], static_cast<int>(tokens[i].size()), blocks[i], &greedy});
    if (s.decode) {
      first.push_back({.slot = slot, .num_rows = 1, .first_position = s.history - 1, .samples = true});
      second.push_back({.slot = slot, .num_rows = s.num_rows, .max_seq_len = case_.max_model_len});
    } else {
      second.push_back({.slot = slot, .num_rows = s.num_rows, .first_position = s.history, .samples = true});
    }
  }
  Backend& b = *rig.backend;
  Status status = b.plan({.admitted = admitted, .slices = first}, rig.views);
  ASSERT_TRUE(status.ok()) << status.error().message;
  b.gather_inputs(rig.lane(), rig.view());
  std::vector<float> logits(rig.act->logits.num_elements(), 0.0f);
  for (size_t i = 0; i < first.size(); ++i)
    logits[i * case_.shape.vocab_size + (5 * i + 3) % case_.shape.vocab_size] = 9.0f;
  write_floats(rig.access, rig.act->logits, logits);
  b.sample(rig.lane(), rig.view(), *rig.act);
  // A draft for each: what mtp_draft makes of some hidden rows. Its value does not matter, only that there is one.
  if (!first.empty()) {
    std::vector<float> stream(rig.act->mtp.hidden.num_elements());
    for (float& x : stream) x = host::round_to_e4m3(static_cast<float>(rng() % 17) / 8.0f - 1.0f);
    write_floats(rig.access, rig.act->mtp.hidden, stream);
    rig.act->mtp.residual_valid = false;
    b.mtp_draft(rig.lane(), rig.view(), *rig.model.mtp.norm, rig.model.head, *rig.act);
  }
  ASSERT_TRUE(b.finish().ok());
  for (Tensor* t : {&rig.act->mtp.hidden, &rig.act->mtp.residual, &rig.act->logits}) fill(rig.access, *t, 0xff);
  status = b.plan({.slices = second, .padded_num_tokens = case_.padded_num_tokens}, rig.views);
  ASSERT_TRUE(status.ok()) << status.error().message;
}

void CaseRun::metadata() {
  SCOPED_TRACE("plan, gather_inputs");
  both([](Rig& rig) { rig.backend->gather_inputs(rig.lane(), rig.view()); });
  const StepView &a = own_.view(), &b = ref_.view();
  EXPECT_EQ(a.num_tokens, std::max(num_rows(), case_.padded_num_tokens));
  EXPECT_EQ(a.num_tokens, b.num_tokens);
  EXPECT_EQ(a.num_reqs, b.num_reqs);
  EXPECT_EQ(a.num_logit_rows, b.num_logit_rows);
  for (Tensor StepView::*t :
       {&StepView::token_ids, &StepView::positions, &StepView::next_token_ids, &StepView::row_req}) {
    EXPECT_EQ(read_ints(own_.access, a.*t, a.num_tokens), read_ints(ref_.access, b.*t, b.num_tokens));
  }
  const auto positions = read_ints(ref_.access, b.positions, b.num_tokens);
  live_.clear();
  for (int r = 0; r < b.num_tokens; ++r) {
    if (positions[r] >= 0) live_.push_back(r);
  }
  EXPECT_EQ(static_cast<int>(live_.size()), num_rows()) << "the case's decode rows all have a draft";
}

void CaseRun::embed() {
  SCOPED_TRACE("embed");
  both([](Rig& rig) { rig.backend->embed(rig.lane(), rig.view(), *rig.model.embedding, rig.act->hidden); });
  EXPECT_FALSE(own_.act->hidden.residual_valid);
  compare("hidden", hidden_of, bounds_.stream);
}

void CaseRun::attention(int layer) {
  SCOPED_TRACE("attn_project, attn_attend of layer " + std::to_string(layer));
  hand_over(&Activations::hidden);
  both([layer](Rig& rig) {
    KvLayer cache = rig.backend->cache_layer(layer);
    rig.backend->attn_project(rig.lane(), rig.view(), rig.model.attn, rig.act->hidden, cache, *rig.act);
  });
  EXPECT_TRUE(own_.act->hidden.residual_valid);
  compare("residual", residual_of, bounds_.stream);
  compare_cache(layer);
  both([layer](Rig& rig) {
    rig.backend->attn_attend(rig.lane(), rig.view(), rig.model.attn, rig.backend->cache_layer(layer), *rig.act,
                             rig.act->hidden);
  });
  compare("hidden", hidden_of, bounds_.stream);
}

// New rows are close, all others still hold what the test put there.
void CaseRun::compare_cache(int layer) {
  const Tensor a = own_.backend->cache_layer(layer).rows, b = ref_.backend->cache_layer(layer).rows;
  const int64_t width = b.shape[2];
  const auto x = read_floats(own_.access, a), y = read_floats(ref_.access, b);
  std::vector<int> finite;
  for (int64_t r = 0; r < b.shape[0] * b.shape[1]; ++r) {
    if (std::isfinite(y[r * width])) {
      finite.push_back(static_cast<int>(r));
    } else {
      EXPECT_TRUE(std::isnan(x[r * width])) << "cache row " << r << " belongs to no token and was written";
    }
  }
  expect_close("cache", x, y, width, finite, bounds_.cache);
}

void CaseRun::dense_mlp() {
  SCOPED_TRACE("dense_mlp");
  hand_over(&Activations::hidden);
  both([](Rig& rig) {
    rig.backend->dense_mlp(rig.lane(), rig.view(), *rig.model.post_attn_norm, rig.model.dense, *rig.act,
                           rig.act->hidden);
  });
  compare("hidden", hidden_of, bounds_.stream);
  compare("residual", residual_of, bounds_.stream);
}

void CaseRun::route() {
  SCOPED_TRACE("route");
  hand_over(&Activations::hidden);
  both([this](Rig& rig) {
    rig.backend->route(rig.lane(), rig.view(), 1, *rig.model.post_attn_norm, rig.model.gate, map_, *rig.act,
                       rig.act->hidden);
  });
  compare(
      "moe_input", [](Activations& act) { return act.moe_input; }, bounds_.stream);
  const ModelShape& s = case_.shape;
  const int k = s.num_experts_per_tok, n = ref_.view().num_tokens;
  const auto a = read_ints(own_.access, own_.act->topk_id, n * k), b = read_ints(ref_.access, ref_.act->topk_id, n * k);
  const auto wa = read_floats(own_.access, own_.act->topk_weight), wb = read_floats(ref_.access, ref_.act->topk_weight);
  const auto& gate = static_cast<const ref::RefWeight&>(*ref_.model.gate.weight);
  const auto input = read_floats(ref_.access, ref_.act->moe_input);
  for (int r = 0; r < n; ++r) {
    const std::vector<int32_t> x(a.begin() + r * k, a.begin() + (r + 1) * k),
        y(b.begin() + r * k, b.begin() + (r + 1) * k);
    if (!std::binary_search(live_.begin(), live_.end(), r)) {
      EXPECT_THAT(x, ::testing::Each(-1)) << "padding row " << r;
      continue;
    }
    std::vector<float> logits(s.n_routed_experts, 0.0f);
    ref::multiply_add(&input[int64_t{r} * s.hidden_size], 0, gate.data.data(), gate.out, logits.data(), 0, 1, gate.out,
                      gate.in);
    const float* bias = ref_.model.gate.correction_bias ? bias_.data() : nullptr;
    if (routing_margin(s, logits.data(), bias) <= bounds_.router_margin) continue;
    EXPECT_THAT(x, ::testing::UnorderedElementsAreArray(y)) << "row " << r;
    const auto score = biased_scores(s, logits.data(), bias);
    for (int j = 0; j < k; ++j) {
      // The order counts too: combine adds in it. Experts with almost equal scores may change places.
      const bool decided = (j == 0 || score[y[j - 1]] - score[y[j]] > bounds_.router_margin) &&
                           (j == k - 1 || score[y[j]] - score[y[j + 1]] > bounds_.router_margin);
      if (!decided) continue;
      EXPECT_EQ(x[j], y[j]) << "row " << r << ", place " << j;
      EXPECT_NEAR(wa[r * k + j], wb[r * k + j], bounds_.topk_weight) << "row " << r << ", place " << j;
    }
  }
}

void CaseRun::moe() {
  {
    SCOPED_TRACE("shared_expert");
    hand_over(&Activations::moe_input);
    both([](Rig& rig) { rig.backend->shared_expert(rig.lane(), rig.view(), rig.model.shared, *rig.act); });
    compare(
        "shared_out", [](Activations& act) { return act.shared_out; }, bounds_.stream);
  }
  const int n = case_.shape.n_routed_experts, t = std::max(num_rows(), 1);
  std::vector<int> even(n, t * case_.shape.num_experts_per_tok / n + 1), one(n, 0), ragged(n);
  one[n / 2] = t;
  for (int e = 0; e < n; ++e) ragged[e] = e % 3 == 0 ? 0 : (e * 7) % (t + 1);
  for (ep::ExpertLayout layout : {ep::ExpertLayout::kContiguous, ep::ExpertLayout::kMasked}) {
    for (const auto& counts : {even, one, ragged, std::vector<int>(n, 0)}) experts(layout, counts);
  }
  SCOPED_TRACE("merge");
  hand_over(&Activations::shared_out);
  std::mt19937 rng(17);
  std::normal_distribution<float> normal;
  std::vector<float> combined(ref_.act->combined.num_elements());
  for (float& x : combined) x = normal(rng);
  both([&](Rig& rig) {
    write_floats(rig.access, rows(rig.act->combined, 0, rig.view().num_tokens), combined);
    rig.backend->merge(rig.lane(), rig.view(), *rig.act, rig.act->hidden);
  });
  compare("hidden", hidden_of, bounds_.stream);
}

// Expert rows of the test's making, in the wire dtype of the backend under test; ref takes the same values in float32.
void CaseRun::experts(ep::ExpertLayout layout, const std::vector<int>& counts) {
  SCOPED_TRACE(layout == ep::ExpertLayout::kMasked ? "experts, masked" : "experts, contiguous");
  const auto n = static_cast<int64_t>(counts.size());
  const int64_t d = case_.shape.hidden_size;
  const bool masked = layout == ep::ExpertLayout::kMasked;
  const int most = *std::max_element(counts.begin(), counts.end()) + 2;
  std::vector<int32_t> offsets(n + 1, 0);
  std::vector<int> valid;
  for (int64_t e = 0; e < n; ++e) {
    offsets[e + 1] = offsets[e] + counts[e];
    for (int i = 0; i < counts[e]; ++i) valid.push_back(static_cast<int>(masked ? e * most + i : offsets[e] + i));
  }
  const int64_t num_rows = masked ? n * most : offsets[n] + 2;
  std::mt19937 rng(19);
  std::normal_distribution<float> normal;
  std::vector<float> in(num_rows * d, std::numeric_limits<float>::quiet_NaN());
  for (int r : valid) {
    for (int64_t c = 0; c < d; ++c) in[r * d + c] = host::from_bf16(host::to_bf16(normal(rng)));
  }
  const auto run_on = [&](Rig& rig) {
    const DType wire = rig.backend->caps().wire_dtype;
    const size_t num_bytes = in.size() * dtype_bytes(wire);
    const auto hidden = rig.access.allocate(num_bytes), output = rig.access.allocate(num_bytes);
    const auto counted = [&rig](const void* from, int64_t count) {
      auto memory = rig.access.allocate(count * sizeof(int32_t));
      rig.access.write(make_tensor(memory.get(), DType::kI32, {count}), from);
      return memory;
    };
    const auto offset_memory = counted(offsets.data(), n + 1), count_memory = counted(counts.data(), n);
    ep::ExpertBatch batch;
    batch.layout = layout;
    batch.hidden =
        masked ? make_tensor(hidden.get(), wire, {n, most, d}) : make_tensor(hidden.get(), wire, {num_rows, d});
    batch.output = batch.hidden;
    batch.output.data = output.get();
    batch.row_offsets = make_tensor(offset_memory.get(), DType::kI32, {n + 1});
    batch.num_rows = make_tensor(count_memory.get(), DType::kI32, {n});
    batch.max_rows = masked ? most : offsets[n];
    fill(rig.access, batch.output, 0xff);
    write_floats(rig.access, batch.hidden, in);
    rig.backend->experts(rig.lane(), rig.model.experts, batch);
    return read_floats(rig.access, batch.output);
  };
  const auto a = run_on(own_), b = run_on(ref_);
  expect_close("output", a, b, d, valid, bounds_.stream);
  std::vector<bool> is_valid(num_rows, false);
  for (int r : valid) is_valid[r] = true;
  for (int64_t r = 0; r < num_rows; ++r) {
    EXPECT_TRUE(is_valid[r] || std::isnan(a[r * d])) << "row " << r << " holds no token and was written";
  }
}

void CaseRun::head() {
  SCOPED_TRACE("head");
  hand_over(&Activations::hidden);
  both([](Rig& rig) { rig.backend->head(rig.lane(), rig.view(), rig.model.head, *rig.act, rig.act->hidden); });
  compare(
      "final_hidden", [](Activations& act) { return act.final_hidden; }, bounds_.stream);
  const int64_t v = case_.shape.vocab_size;
  const auto a = read_floats(own_.access, own_.act->logits), b = read_floats(ref_.access, ref_.act->logits);
  for (int i = 0; i < ref_.view().num_logit_rows; ++i) {
    const auto [low, high] = std::minmax_element(b.begin() + i * v, b.begin() + (i + 1) * v);
    for (int64_t t = 0; t < v; ++t) {
      ASSERT_NEAR(a[i * v + t], b[i * v + t], bounds_.logits * (*high - *low)) << "logit row " << i << ", token " << t;
    }
  }
}

void CaseRun::sample() {
  SCOPED_TRACE("sample");
  hand_over(&Activations::logits);
  both([](Rig& rig) { rig.backend->sample(rig.lane(), rig.view(), *rig.act); });
  const SampleView &a = own_.view().sample, &b = ref_.view().sample;
  ASSERT_EQ(a.num_slices, b.num_slices);
  EXPECT_EQ(read_ints(own_.access, a.tokens, a.num_slices * a.max_rows),
            read_ints(ref_.access, b.tokens, b.num_slices * b.max_rows));
  EXPECT_EQ(read_ints(own_.access, a.num_accepted, a.num_slices), read_ints(ref_.access, b.num_accepted, b.num_slices));
  EXPECT_EQ(read_ints(own_.access, a.draft_row, a.num_slices), read_ints(ref_.access, b.draft_row, b.num_slices));
}

void CaseRun::mtp() {
  SCOPED_TRACE("mtp_input, mtp_draft");
  hand_over(&Activations::final_hidden);
  both([](Rig& rig) { rig.backend->mtp_input(rig.lane(), rig.view(), *rig.model.embedding, rig.model.mtp, *rig.act); });
  EXPECT_FALSE(own_.act->mtp.residual_valid);
  compare(
      "mtp.hidden", [](Activations& act) { return act.mtp.hidden; }, bounds_.stream);
  hand_over(&Activations::mtp);
  both([](Rig& rig) { rig.backend->mtp_draft(rig.lane(), rig.view(), *rig.model.mtp.norm, rig.model.head, *rig.act); });
  auto a = own_.backend->finish(), b = ref_.backend->finish();
  ASSERT_TRUE(a.ok()) << a.error().message;
  ASSERT_TRUE(b.ok()) << b.error().message;
  ASSERT_EQ(a->slices.size(), b->slices.size());
  for (size_t i = 0; i < b->slices.size(); ++i) {
    EXPECT_EQ(a->slices[i].slot, b->slices[i].slot);
    EXPECT_EQ(a->slices[i].tokens, b->slices[i].tokens);
    EXPECT_EQ(a->slices[i].error, "");
  }
}

void CaseRun::beyond_the_step() {
  SCOPED_TRACE("rows beyond the step");
  Activations& a = *own_.act;
  const int n = own_.view().num_tokens;
  expect_untouched("topk_id", own_.access, a.topk_id, n);
  expect_untouched("topk_weight", own_.access, a.topk_weight, n);
  expect_untouched("logits", own_.access, a.logits, std::max(own_.view().num_logit_rows, own_.view().num_reqs));
}

}  // namespace

void run_stage_case(const StageCase& stage_case, const Subject& subject) {
  SCOPED_TRACE("case: " + stage_case.name);
  CaseRun(stage_case, subject).run();
}

void run_stage_cases(const Subject& subject) {
  for (const StageCase& stage_case : stage_cases()) run_stage_case(stage_case, subject);
}

}  // namespace manta::backend::testing
