// Ranks of a group as threads, each with a transport of its own, and the steps they run: every token's sum must be bit
// for bit what loopback gives for the same routing.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "ep/expert_transport.h"

namespace manta::ep::testing {

inline float widen(uint16_t x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x) << 16);
}
inline uint16_t to_bf16(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// One rank's tokens of one step. ids: [tokens, top_k]; -1 all over a padding row.
struct RankStep {
  int tokens = 0;
  std::vector<char> hidden;  // wire
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

using Routing = std::function<std::vector<int32_t>(std::mt19937&)>;  // ids of one token

inline RankStep random_step(std::mt19937& random, const MoeShape& shape, int tokens, const Routing& routing) {
  RankStep step;
  step.tokens = tokens;
  std::uniform_real_distribution<float> value(-4, 4);
  step.hidden.resize(static_cast<size_t>(tokens) * shape.hidden_size * dtype_bytes(shape.wire_dtype));
  for (int64_t i = 0; i < int64_t{tokens} * shape.hidden_size; ++i) {
    const float x = value(random);
    const uint16_t half = to_bf16(x);
    if (shape.wire_dtype == DType::kF32) std::memcpy(&step.hidden[i * 4], &x, 4);
    if (shape.wire_dtype == DType::kBF16) std::memcpy(&step.hidden[i * 2], &half, 2);
  }
  for (int t = 0; t < tokens; ++t) {
    for (const int32_t id : routing(random)) step.ids.push_back(id);
    for (int k = 0; k < shape.num_experts_per_tok; ++k) step.weights.push_back(value(random));
  }
  return step;
}

// What expert `physical` does to a row: some function of both that is not linear in the row.
inline void apply_expert(int physical, const char* in, char* out, const MoeShape& shape) {
  for (int i = 0; i < shape.hidden_size; ++i) {
    const float x = shape.wire_dtype == DType::kF32 ? reinterpret_cast<const float*>(in)[i]
                                                    : widen(reinterpret_cast<const uint16_t*>(in)[i]);
    const float y = x * x * 0.3f + x * static_cast<float>(physical + 1);
    if (shape.wire_dtype == DType::kF32) reinterpret_cast<float*>(out)[i] = y;
    if (shape.wire_dtype == DType::kBF16) reinterpret_cast<uint16_t*>(out)[i] = to_bf16(y);
  }
}

inline void run_experts(const ExpertBatch& batch, int first_physical, const MoeShape& shape) {
  const size_t row_bytes = static_cast<size_t>(shape.hidden_size) * dtype_bytes(shape.wire_dtype);
  for (int e = 0; e < shape.num_local_experts; ++e) {
    int64_t begin = 0, end = 0;
    if (batch.layout == ExpertLayout::kContiguous) {
      begin = batch.row_offsets.as<int32_t>()[e];
      end = batch.row_offsets.as<int32_t>()[e + 1];
    } else {
      begin = e * batch.hidden.shape[1];
      end = begin + batch.num_rows.as<int32_t>()[e];
      ASSERT_LE(end - begin, batch.max_rows);
    }
    for (int64_t row = begin; row < end; ++row) {
      apply_expert(first_physical + e, static_cast<char*>(batch.hidden.data) + row * row_bytes,
                   static_cast<char*>(batch.output.data) + row * row_bytes, shape);
    }
  }
}

// A microbatch through all its rounds, as the layer driver does it, split at the halves so that two can interleave.
class Microbatch {
 public:
  Microbatch(ExpertTransport& transport, int index, const MoeShape& shape, int first_physical, int round_tokens)
      : transport_(transport), index_(index), shape_(shape), first_physical_(first_physical), chunk_(round_tokens) {}

  void start(const RankStep& step, int layer) {
    step_ = &step;
    layer_ = layer;
    first_ = 0;
    out.assign(static_cast<size_t>(step.tokens) * shape_.hidden_size, -1.0f);
    rounds = 0;
    dispatch();
  }
  void experts() {
    transport_.dispatch_finish(lane_, transport_.handle(index_), batch_);
    run_experts(batch_, first_physical_, shape_);
    transport_.combine_start(lane_, transport_.handle(index_), batch_);
  }
  void finish() {
    while (true) {
      ++rounds;
      Tensor part = make_tensor(out.data() + static_cast<size_t>(first_) * shape_.hidden_size, DType::kF32,
                                {count(), shape_.hidden_size});
      transport_.combine_finish(lane_, transport_.handle(index_), part);
      if (!batch_.more) return;
      first_ += count();
      dispatch();
      experts();
    }
  }

  std::vector<float> out;  // [tokens, D]
  int rounds = 0;

 private:
  int count() const { return std::min(chunk_, step_->tokens - first_); }
  void dispatch() {
    const size_t row_bytes = static_cast<size_t>(shape_.hidden_size) * dtype_bytes(shape_.wire_dtype);
    const int top_k = shape_.num_experts_per_tok;
    Routed r;
    r.layer = layer_;
    r.hidden = make_tensor(const_cast<char*>(step_->hidden.data()) + first_ * row_bytes, shape_.wire_dtype,
                           {count(), shape_.hidden_size});
    r.topk_id = make_tensor(const_cast<int32_t*>(step_->ids.data()) + first_ * top_k, DType::kI32, {count(), top_k});
    r.topk_weight =
        make_tensor(const_cast<float*>(step_->weights.data()) + first_ * top_k, DType::kF32, {count(), top_k});
    r.more = first_ + count() < step_->tokens;
    transport_.dispatch_start(lane_, transport_.handle(index_), r);
  }

  ExpertTransport& transport_;
  const int index_;
  const MoeShape shape_;
  const int first_physical_, chunk_;
  const RankStep* step_ = nullptr;
  int layer_ = 0, first_ = 0;
  Lane lane_;
  ExpertBatch batch_;
};

// The same step on one rank with all experts.
inline std::vector<float> loopback_result(const RankStep& step, MoeShape shape, ExpertLayout layout) {
  shape.num_local_experts = shape.num_physical_experts;
  const auto transport = make_loopback_transport(layout);
  const Status status = transport->configure({Epoch{1}, 0, 1, {}}, shape, std::max(1, step.tokens), 1);
  EXPECT_TRUE(status.ok()) << status.error().message;
  Microbatch microbatch(*transport, 0, shape, 0, std::max(1, step.tokens));
  microbatch.start(step, 0);
  microbatch.experts();
  microbatch.finish();
  return microbatch.out;
}

struct Ranks {
  std::vector<std::unique_ptr<ExpertTransport>> transports;
  EpTopology topology;
  MoeShape shape;
  int round_tokens = 0, num_microbatches = 1;

  // two_hosts: odd ranks say that they are elsewhere.
  static Ranks make(int size, const TransportOptions& options, ExpertLayout layout, bool two_hosts = false) {
    Ranks ranks;
    ranks.topology.size = size;
    for (int r = 0; r < size; ++r) {
      TransportOptions mine = options;
      mine.layout = layout;
      auto transport = make_transport(mine);
      EXPECT_TRUE(transport.ok()) << transport.error().message;
      auto peer = (*transport)->listen();
      EXPECT_TRUE(peer.ok()) << peer.error().message;
      peer->rank = r;
      if (two_hosts && r % 2 == 1) peer->host_id += "/elsewhere";
      ranks.topology.peers.push_back(*peer);
      ranks.transports.push_back(std::move(*transport));
    }
    return ranks;
  }

  // On a thread per rank.
  static void each(int size, const std::function<void(int rank)>& body) {
    std::vector<std::thread> threads;
    for (int r = 0; r < size; ++r) threads.emplace_back([&body, r] { body(r); });
    for (std::thread& thread : threads) thread.join();
  }

  Status configure_rank(int rank, Epoch epoch) {
    EpTopology mine = topology;
    mine.epoch = epoch;
    mine.rank = rank;
    return transports[rank]->configure(mine, shape, round_tokens, num_microbatches);
  }
  void configure(Epoch epoch) {
    each(topology.size, [&](int r) {
      const Status status = configure_rank(r, epoch);
      EXPECT_TRUE(status.ok()) << r << ": " << status.error().message;
    });
  }
  Microbatch microbatch(int rank, int index) {
    return {*transports[rank], index, shape, rank * shape.num_local_experts, round_tokens};
  }
};

}  // namespace manta::ep::testing
