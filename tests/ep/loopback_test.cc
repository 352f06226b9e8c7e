#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "ep/expert_transport.h"

namespace manta::ep {
namespace {

using ::testing::HasSubstr;

struct Case {
  ExpertLayout layout;
  DType wire;
};

float widen(uint16_t x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x) << 16);
}
uint16_t to_bf16(float x) {  // round to nearest even
  const auto bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The rows of one step, and what a transport makes of them.
struct Step {
  int tokens, top_k, hidden;
  DType wire;
  std::vector<float> x;  // as the wire carries it
  std::vector<char> wire_bytes;
  std::vector<int32_t> ids;
  std::vector<float> weights;

  Step(int t, int k, int d, DType dtype)
      : tokens(t), top_k(k), hidden(d), wire(dtype), x(t * d), ids(t * k), weights(t * k) {}

  void fill(std::mt19937& random, int experts) {
    std::uniform_real_distribution<float> value(-4, 4);
    for (float& v : x) v = wire == DType::kBF16 ? widen(to_bf16(value(random))) : value(random);
    for (float& w : weights) w = value(random);
    std::vector<int32_t> order(experts);
    for (int t = 0; t < tokens; ++t) {
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), random);
      std::copy_n(order.begin(), top_k, ids.begin() + t * top_k);
    }
  }
  void to_wire() {
    wire_bytes.resize(x.size() * dtype_bytes(wire));
    for (size_t i = 0; i < x.size(); ++i) {
      const uint16_t half = to_bf16(x[i]);
      if (wire == DType::kF32) std::memcpy(&wire_bytes[i * 4], &x[i], 4);
      if (wire == DType::kBF16) std::memcpy(&wire_bytes[i * 2], &half, 2);
    }
  }
  Routed routed() {
    to_wire();
    Routed r;
    r.layer = 3;
    r.hidden = make_tensor(wire_bytes.data(), wire, {tokens, hidden});
    r.topk_id = make_tensor(ids.data(), DType::kI32, {tokens, top_k});
    r.topk_weight = make_tensor(weights.data(), DType::kF32, {tokens, top_k});
    return r;
  }
};

struct Rows {
  std::vector<int> first, count;  // by expert
};

Rows rows_of(const ExpertBatch& batch, int experts) {
  Rows rows;
  for (int e = 0; e < experts; ++e) {
    if (batch.layout == ExpertLayout::kContiguous) {
      const int32_t* offsets = batch.row_offsets.as<int32_t>();
      rows.first.push_back(offsets[e]);
      rows.count.push_back(offsets[e + 1] - offsets[e]);
    } else {
      rows.first.push_back(e * static_cast<int>(batch.hidden.shape[1]));
      rows.count.push_back(batch.num_rows.as<int32_t>()[e]);
    }
  }
  return rows;
}

char* row_at(const Tensor& t, int row) {
  return static_cast<char*>(t.data) + static_cast<size_t>(row) * t.shape[t.rank - 1] * dtype_bytes(t.dtype);
}

class Loopback : public ::testing::TestWithParam<Case> {
 protected:
  static constexpr int kExperts = 6, kTopK = 3, kHidden = 10, kMaxTokens = 40;

  void SetUp() override {
    transport_ = make_loopback_transport(GetParam().layout);
    const Status status = transport_->configure({Epoch{1}, 0, 1, {}}, shape(), kMaxTokens, 2);
    ASSERT_TRUE(status.ok()) << status.error().message;
  }
  MoeShape shape() const { return {kHidden, kTopK, kExperts, kExperts, GetParam().wire}; }
  Step step(int tokens) const { return {tokens, kTopK, kHidden, GetParam().wire}; }

  // Expert e multiplies by scale[e] (powers of two keep every dtype exact).
  std::vector<float> run(Step& s, const std::vector<float>& scale, int microbatch = 0) {
    DispatchHandle& handle = transport_->handle(microbatch);
    ExpertBatch batch;
    std::vector<float> out(static_cast<size_t>(s.tokens) * kHidden, -1.0f);
    const Routed routed = s.routed();
    transport_->dispatch_start(lane_, handle, routed);
    transport_->dispatch_finish(lane_, handle, batch);
    const Rows rows = rows_of(batch, kExperts);
    int total = 0;
    for (int e = 0; e < kExperts; ++e) {
      total += rows.count[e];
      EXPECT_LE(rows.count[e], batch.max_rows);
      for (int r = rows.first[e]; r < rows.first[e] + rows.count[e]; ++r) scale_row(batch, r, scale[e]);
    }
    num_rows_ = total;
    transport_->combine_start(lane_, handle, batch);
    transport_->combine_finish(lane_, handle, make_tensor(out.data(), DType::kF32, {s.tokens, kHidden}));
    return out;
  }
  static void scale_row(ExpertBatch& batch, int row, float scale) {
    for (int i = 0; i < kHidden; ++i) {
      if (batch.hidden.dtype == DType::kF32) {
        reinterpret_cast<float*>(row_at(batch.output, row))[i] =
            scale * reinterpret_cast<float*>(row_at(batch.hidden, row))[i];
      } else {
        reinterpret_cast<uint16_t*>(row_at(batch.output, row))[i] =
            to_bf16(scale * widen(reinterpret_cast<uint16_t*>(row_at(batch.hidden, row))[i]));
      }
    }
  }
  // By the definition in the header.
  static std::vector<float> expected(const Step& s, const std::vector<float>& scale) {
    std::vector<float> out(static_cast<size_t>(s.tokens) * kHidden, 0.0f);
    for (int t = 0; t < s.tokens; ++t) {
      for (int k = 0; k < kTopK; ++k) {
        const int e = s.ids[t * kTopK + k];
        if (e < 0) continue;
        for (int i = 0; i < kHidden; ++i) {
          out[t * kHidden + i] += s.weights[t * kTopK + k] * (scale[e] * s.x[t * kHidden + i]);
        }
      }
    }
    return out;
  }

  std::unique_ptr<ExpertTransport> transport_;
  Lane lane_;
  int num_rows_ = 0;
};

const std::vector<float> kIdentity(6, 1.0f);
const std::vector<float> kScales = {1, 2, 0.5f, -1, 4, 0.25f};

TEST_P(Loopback, CombineOfDispatchIsTheWeightedSum) {
  std::mt19937 random(1);
  for (const int tokens : {1, 2, 7, kMaxTokens}) {
    Step s = step(tokens);
    s.fill(random, kExperts);
    EXPECT_EQ(run(s, kIdentity), expected(s, kIdentity)) << tokens;
    EXPECT_EQ(num_rows_, tokens * kTopK);
    EXPECT_EQ(run(s, kScales), expected(s, kScales)) << tokens;
  }
  EXPECT_TRUE(transport_->status().ok());
}

TEST_P(Loopback, Empty) {
  Step s = step(0);
  EXPECT_TRUE(run(s, kIdentity).empty());
  EXPECT_EQ(num_rows_, 0);
  EXPECT_TRUE(transport_->status().ok());
}

TEST_P(Loopback, OneExpertTakesAll) {
  std::mt19937 random(2);
  Step s = step(kMaxTokens);
  s.fill(random, kExperts);
  for (int t = 0; t < s.tokens; ++t) {
    s.ids[t * kTopK] = 4;
    s.ids[t * kTopK + 1] = s.ids[t * kTopK + 2] = -1;
  }
  EXPECT_EQ(run(s, kScales), expected(s, kScales));
  EXPECT_EQ(num_rows_, kMaxTokens);
}

TEST_P(Loopback, PaddingRowsAreNotSentAndBecomeZero) {
  std::mt19937 random(3);
  Step s = step(9);
  s.fill(random, kExperts);
  for (const int t : {0, 4, 8}) std::fill_n(s.ids.begin() + t * kTopK, kTopK, -1);
  const std::vector<float> out = run(s, kScales);
  EXPECT_EQ(out, expected(s, kScales));
  EXPECT_EQ(num_rows_, 6 * kTopK);
  for (int i = 0; i < kHidden; ++i) EXPECT_EQ(out[4 * kHidden + i], 0.0f);
}

TEST_P(Loopback, ARowDoesNotDependOnItsNeighbours) {
  std::mt19937 random(4);
  Step all = step(12);
  all.fill(random, kExperts);
  const std::vector<float> together = run(all, kScales);
  for (int t = 0; t < 12; ++t) {
    Step one = step(1);
    std::copy_n(all.x.begin() + t * kHidden, kHidden, one.x.begin());
    std::copy_n(all.ids.begin() + t * kTopK, kTopK, one.ids.begin());
    std::copy_n(all.weights.begin() + t * kTopK, kTopK, one.weights.begin());
    const std::vector<float> alone = run(one, kScales);
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + t * kHidden)) << t;
  }
}

TEST_P(Loopback, MicrobatchesDoNotMix) {
  std::mt19937 random(5);
  Step a = step(5), b = step(8);
  a.fill(random, kExperts);
  b.fill(random, kExperts);
  const Routed routed_a = a.routed(), routed_b = b.routed();
  DispatchHandle &ha = transport_->handle(0), &hb = transport_->handle(1);
  ExpertBatch batch_a, batch_b;
  transport_->dispatch_start(lane_, ha, routed_a);
  transport_->dispatch_start(lane_, hb, routed_b);
  transport_->dispatch_finish(lane_, ha, batch_a);
  transport_->dispatch_finish(lane_, hb, batch_b);
  for (ExpertBatch* batch : {&batch_a, &batch_b}) {
    const Rows rows = rows_of(*batch, kExperts);
    for (int e = 0; e < kExperts; ++e) {
      for (int r = rows.first[e]; r < rows.first[e] + rows.count[e]; ++r) scale_row(*batch, r, kScales[e]);
    }
  }
  std::vector<float> out_a(5 * kHidden), out_b(8 * kHidden);
  transport_->combine_start(lane_, hb, batch_b);
  transport_->combine_start(lane_, ha, batch_a);
  transport_->combine_finish(lane_, ha, make_tensor(out_a.data(), DType::kF32, {5, kHidden}));
  transport_->combine_finish(lane_, hb, make_tensor(out_b.data(), DType::kF32, {8, kHidden}));
  EXPECT_EQ(out_a, expected(a, kScales));
  EXPECT_EQ(out_b, expected(b, kScales));
}

TEST_P(Loopback, ImpossibleRoutingIsAFaultNotACrash) {
  std::mt19937 random(6);
  Step s = step(4);
  s.fill(random, kExperts);
  s.ids[2] = kExperts;
  run(s, kIdentity);
  EXPECT_THAT(transport_->status().error().message, HasSubstr("layer 3: expert 6 of 6"));
  ASSERT_TRUE(transport_->configure({Epoch{2}, 0, 1, {}}, shape(), kMaxTokens, 2).ok());
  EXPECT_TRUE(transport_->status().ok());
}

TEST_P(Loopback, AbortOfALaterEpochIsSeen) {
  transport_->abort(Epoch{1});
  EXPECT_TRUE(transport_->status().ok()) << "only epochs below the named one";
  transport_->abort(Epoch{2});
  EXPECT_EQ(transport_->status().error().code, ErrorCode::kAborted);
}

TEST_P(Loopback, ConfigureChecks) {
  MoeShape partial = shape();
  partial.num_local_experts = 3;
  EXPECT_FALSE(transport_->configure({Epoch{1}, 0, 1, {}}, partial, 4, 1).ok());
  EXPECT_FALSE(transport_->configure({Epoch{1}, 0, 2, {}}, shape(), 4, 1).ok());
  MoeShape fp8 = shape();
  fp8.wire_dtype = DType::kF8E4M3;
  EXPECT_THAT(transport_->configure({Epoch{1}, 0, 1, {}}, fp8, 4, 1).error().message, HasSubstr("F8_E4M3"));
  EXPECT_FALSE(transport_->configure({Epoch{1}, 0, 1, {}}, shape(), 0, 1).ok());
  EXPECT_FALSE(transport_->configure({Epoch{1}, 0, 1, {}}, shape(), 1 << 30, 1).ok());
  EXPECT_EQ(transport_->buffer_bytes(shape(), 8, 2), 2 * transport_->buffer_bytes(shape(), 8, 1));
}

INSTANTIATE_TEST_SUITE_P(Layouts, Loopback,
                         ::testing::Values(Case{ExpertLayout::kContiguous, DType::kF32},
                                           Case{ExpertLayout::kContiguous, DType::kBF16},
                                           Case{ExpertLayout::kMasked, DType::kF32},
                                           Case{ExpertLayout::kMasked, DType::kBF16}),
                         [](const auto& info) {
                           return std::string(info.param.layout == ExpertLayout::kMasked ? "Masked" : "Contiguous") +
                                  to_string(info.param.wire);
                         });

TEST(ExpertMap, LinearPlacementRepeatsTheFirstExperts) {
  const auto map = linear_expert_map(2, 4, 2, 3, Epoch{1});
  ASSERT_TRUE(map.ok()) << map.error().message;
  EXPECT_EQ(map->num_physical, 6);
  EXPECT_EQ(std::vector<int32_t>(map->physical_to_logical.begin(), map->physical_to_logical.begin() + 6),
            (std::vector<int32_t>{0, 1, 2, 3, 0, 1}));
  EXPECT_EQ(map->logical_replica_count[4 + 1], 2);
  EXPECT_EQ(map->logical_to_physical[(4 + 1) * map->max_replicas + 1], 5);
  EXPECT_EQ(map->logical_to_physical[(4 + 3) * map->max_replicas + 1], -1);
}

TEST(ExpertMap, RefusesWhatDoesNotFit) {
  EXPECT_THAT(linear_expert_map(1, 4, 1, 2, Epoch{1}).error().message, HasSubstr("divide by the EP size 2"));
  EXPECT_THAT(linear_expert_map(1, 4, 4, 1, Epoch{1}).error().message, HasSubstr("num_redundant_experts 4"));
  EXPECT_FALSE(linear_expert_map(1, 4, 0, 0, Epoch{1}).ok());
}

}  // namespace
}  // namespace manta::ep
