// Ranks of an expert-parallel group as threads of a test, each with a transport of its own.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <functional>
#include <latch>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "ep/expert_transport.h"

namespace manta::ep {

inline float widen_bf16(uint16_t x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x) << 16);
}
inline uint16_t round_to_bf16(float x) {  // to nearest even
  const auto bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Tokens of one rank in one dispatch.
struct Tokens {
  int count = 0, top_k = 0, hidden = 0;
  DType wire = DType::kF32;
  std::vector<std::byte> rows;
  std::vector<int32_t> ids;
  std::vector<float> weights;

  Routed routed(int layer) {
    Routed r;
    r.layer = layer;
    r.hidden = make_tensor(rows.data(), wire, {count, hidden});
    r.topk_id = make_tensor(ids.data(), DType::kI32, {count, top_k});
    r.topk_weight = make_tensor(weights.data(), DType::kF32, {count, top_k});
    return r;
  }
};

inline float read_wire(const std::byte* at, DType wire) {
  float f = 0;
  uint16_t half = 0;
  if (wire == DType::kF32) return std::memcpy(&f, at, 4), f;
  std::memcpy(&half, at, 2);
  return widen_bf16(half);
}
inline void write_wire(std::byte* at, DType wire, float value) {
  const uint16_t half = round_to_bf16(value);
  if (wire == DType::kF32) {
    std::memcpy(at, &value, 4);
  } else {
    std::memcpy(at, &half, 2);
  }
}

// Random rows and distinct experts for every token; some tokens are padding (all ids -1).
inline Tokens random_tokens(std::mt19937& random, int count, const MoeShape& shape) {
  Tokens t{count, shape.num_experts_per_tok, shape.hidden_size, shape.wire_dtype, {}, {}, {}};
  const size_t size = dtype_bytes(t.wire);
  std::uniform_real_distribution<float> value(-4, 4);
  t.rows.resize(size * count * t.hidden);
  for (size_t i = 0; i < t.rows.size(); i += size) write_wire(t.rows.data() + i, t.wire, value(random));
  std::vector<int32_t> order(shape.num_physical_experts);
  std::iota(order.begin(), order.end(), 0);
  for (int i = 0; i < count; ++i) {
    std::shuffle(order.begin(), order.end(), random);
    const bool padding = random() % 7 == 0;
    for (int k = 0; k < t.top_k; ++k) {
      t.ids.push_back(padding ? -1 : order[k]);
      t.weights.push_back(value(random));
    }
  }
  return t;
}

// The tests' experts: y = x * (1 + expert / 8) + expert, rounded to the wire. Any mistaken row or expert shows.
inline void run_experts(const ExpertBatch& batch, int first_expert, int num_local, DType wire) {
  const int64_t hidden = batch.hidden.shape[batch.hidden.rank - 1];
  const size_t size = dtype_bytes(wire);
  for (int e = 0; e < num_local; ++e) {
    int64_t row = 0, count = 0;
    if (batch.layout == ExpertLayout::kContiguous) {
      row = batch.row_offsets.as<int32_t>()[e];
      count = batch.row_offsets.as<int32_t>()[e + 1] - row;
    } else {
      row = e * batch.hidden.shape[1];
      count = batch.num_rows.as<int32_t>()[e];
    }
    EXPECT_LE(count, batch.max_rows);
    const float expert = static_cast<float>(first_expert + e);
    for (int64_t i = row * hidden; i < (row + count) * hidden; ++i) {
      const float x = read_wire(static_cast<const std::byte*>(batch.hidden.data) + i * size, wire);
      write_wire(static_cast<std::byte*>(batch.output.data) + i * size, wire, x * (1 + expert / 8) + expert);
    }
  }
}

inline std::vector<float> dispatch_and_combine(ExpertTransport& transport, Tokens& tokens, int layer, int rank,
                                               int num_local, int microbatch = 0) {
  Lane lane;
  ExpertBatch batch;
  DispatchHandle& handle = transport.handle(microbatch);
  std::vector<float> out(static_cast<size_t>(tokens.count) * tokens.hidden, -1.0f);
  const Routed routed = tokens.routed(layer);
  transport.dispatch_start(lane, handle, routed);
  transport.dispatch_finish(lane, handle, batch);
  run_experts(batch, rank * num_local, num_local, tokens.wire);
  transport.combine_start(lane, handle, batch);
  transport.combine_finish(lane, handle, make_tensor(out.data(), DType::kF32, {tokens.count, tokens.hidden}));
  return out;
}

// What one rank with all experts makes of the same tokens: the truth.
inline std::vector<float> by_loopback(Tokens& tokens, MoeShape shape, ExpertLayout layout) {
  shape.num_local_experts = shape.num_physical_experts;
  auto transport = make_loopback_transport(layout);
  const Status made = transport->configure({Epoch{1}, 0, 1, {}}, shape, std::max(tokens.count, 1), 1);
  EXPECT_TRUE(made.ok()) << made.error().message;
  return dispatch_and_combine(*transport, tokens, 0, 0, shape.num_local_experts);
}

class RankGroup {
 public:
  // hosts[r]: pretended host of rank r; ranks of different hosts do not see each other's memory.
  RankGroup(const TransportOptions& options, std::vector<int> hosts) : hosts_(std::move(hosts)) {
    for (size_t r = 0; r < hosts_.size(); ++r) {
      auto transport = make_transport(options);
      EXPECT_TRUE(transport.ok()) << transport.error().message;
      transports_.push_back(std::move(*transport));
      auto peer = transports_.back()->listen();
      EXPECT_TRUE(peer.ok());
      peers_.push_back(*peer);
      peers_.back().rank = static_cast<int>(r);
    }
  }

  int size() const { return static_cast<int>(hosts_.size()); }
  ExpertTransport& operator[](int rank) { return *transports_[rank]; }

  EpTopology topology(int rank, uint64_t epoch) const {
    EpTopology t{Epoch{epoch}, rank, size(), peers_};
    for (int r = 0; r < size(); ++r) {
      if (hosts_[r] != hosts_[rank]) t.peers[r].host_id = "another host";
    }
    return t;
  }

  // Every rank on a thread of its own; returns when all have.
  void on_all(const std::function<void(int)>& body) {
    std::vector<std::thread> threads;
    for (int r = 0; r < size(); ++r) threads.emplace_back([&body, r] { body(r); });
    for (auto& t : threads) t.join();
  }

  void configure(uint64_t epoch, const MoeShape& shape, int max_tokens, int microbatches) {
    on_all([&](int r) {
      const Status made = transports_[r]->configure(topology(r, epoch), shape, max_tokens, microbatches);
      EXPECT_TRUE(made.ok()) << "rank " << r << ": " << made.error().message;
    });
  }

 private:
  std::vector<int> hosts_;
  std::vector<std::unique_ptr<ExpertTransport>> transports_;
  std::vector<EpPeer> peers_;
};

}  // namespace manta::ep
