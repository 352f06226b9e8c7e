// The transport between the ranks of a group on CPUs.
//
// Ranks of one host share memory: a rank lays its tokens' rows and routing out in its segment, the others gather what
// is theirs from there, straight into their experts' batch; the experts' outputs stay in the segment of the rank that
// computed them, and the token's owner sums them up from there. So a row is copied once on its way out and not at all
// on its way back. Ranks of other hosts get frames (tcp_peers.h); everything else is the same code.
//
// Order of rows of an expert: by source rank, token, k. That is what the owner counts on to find its outputs: the rank
// that computed them publishes only where each source begins (Segment::base).
//
// Why buffers may be used again without further signals: a rank starts its next dispatch after its combine, which
// waited for the outputs of all ranks, which each announces after it gathered all rows; and outputs are overwritten
// after the next dispatch of every rank has been seen, which each starts after it has read its outputs.
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "ep/combine.h"
#include "ep/expert_transport.h"
#include "ep/host.h"
#include "ep/meeting.h"
#include "ep/shared_segment.h"
#include "ep/tcp_peers.h"

namespace manta::ep {

namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kAlignment = 64;
constexpr int64_t kRowsPerPiece = 16;

size_t aligned(size_t n) {
  return (n + kAlignment - 1) / kAlignment * kAlignment;
}

struct Sizes {
  int num_ranks = 1;
  int experts = 0;  // of one rank
  int top_k = 0;
  int max_tokens = 0;
  int64_t plane = 0;     // masked: rows of one expert
  int64_t capacity = 0;  // rows of all experts of a rank
  size_t row_bytes = 0;
};

Sizes sizes_of(const MoeShape& shape, ExpertLayout layout, int max_num_tokens) {
  Sizes s;
  s.num_ranks = shape.num_physical_experts / std::max(shape.num_local_experts, 1);
  s.experts = shape.num_local_experts;
  s.top_k = shape.num_experts_per_tok;
  s.max_tokens = max_num_tokens;
  s.plane = static_cast<int64_t>(s.num_ranks) * max_num_tokens;
  s.capacity = s.plane * (layout == ExpertLayout::kContiguous ? std::min(s.top_k, s.experts) : s.experts);
  s.row_bytes = static_cast<size_t>(shape.hidden_size) * dtype_bytes(shape.wire_dtype);
  return s;
}

// One microbatch's part of a rank's shared segment.
class Area {
 public:
  struct Head {
    alignas(64) ArrivalCounter rows;     // a rank has laid out its rows
    alignas(64) ArrivalCounter outputs;  // a rank's experts are done
    alignas(64) int32_t num_tokens;      // of the owner's dispatch
    int32_t more;                        // another round follows
  };

  static size_t bytes(const Sizes& s) { return layout(s).end; }
  Area(std::byte* at, const Sizes& s) : at_(at), offsets_(layout(s)) {}

  Head& head() const { return *reinterpret_cast<Head*>(at_); }
  int32_t* base() const { return reinterpret_cast<int32_t*>(at_ + offsets_.base); }  // [num_ranks, experts]
  int32_t* ids() const { return reinterpret_cast<int32_t*>(at_ + offsets_.ids); }    // [max_tokens, top_k]
  std::byte* rows() const { return at_ + offsets_.rows; }                            // [max_tokens] rows
  std::byte* outputs() const { return at_ + offsets_.outputs; }                      // [capacity] rows

 private:
  struct Offsets {
    size_t base, ids, rows, outputs, end;
  };
  static Offsets layout(const Sizes& s) {
    Offsets o{};
    o.base = aligned(sizeof(Head));
    o.ids = o.base + aligned(sizeof(int32_t) * s.num_ranks * s.experts);
    o.rows = o.ids + aligned(sizeof(int32_t) * s.max_tokens * s.top_k);
    o.outputs = o.rows + aligned(s.row_bytes * s.max_tokens);
    o.end = o.outputs + aligned(s.row_bytes * s.capacity);
    return o;
  }
  std::byte* at_;
  Offsets offsets_;
};

// Uninitialised, so that pages of a buffer that never fills are never touched.
struct FreeBytes {
  void operator()(std::byte* p) const { std::free(p); }
};
using Bytes = std::unique_ptr<std::byte, FreeBytes>;
Bytes make_bytes(size_t n) {
  return Bytes(static_cast<std::byte*>(std::aligned_alloc(kAlignment, aligned(n + 1))));
}

// What one rank sent to this one in the dispatch under way.
struct Source {
  int num_tokens = 0;
  bool more = false;                      // another round follows
  const int32_t* ids = nullptr;           // [num_tokens, top_k]
  const std::byte* rows = nullptr;        // see row()
  const int32_t* row_of_token = nullptr;  // tcp: only the rows that are ours came
  std::vector<int32_t> batch_row;         // [num_tokens, top_k] where a pair stands in the batch; -1: not ours

  const std::byte* row(int token, size_t row_bytes) const {
    return rows + (row_of_token ? row_of_token[token] : token) * static_cast<int64_t>(row_bytes);
  }
};

struct Copy {
  const std::byte* from;
  int32_t to_row;
};

class GroupHandle : public DispatchHandle {
 public:
  int microbatch = 0;
  Bytes batch_rows;  // [capacity]
  Tensor hidden, output;
  std::vector<Source> sources;          // by rank
  std::vector<Area> areas;              // by rank; those of other hosts are never looked at
  std::vector<int32_t> offsets;         // contiguous: [experts + 1]
  std::vector<int32_t> counts;          // [experts]
  std::vector<int32_t> nth_of_expert;   // [T, top_k]: how many of our earlier pairs went to the same expert
  std::vector<int32_t> nth_of_rank;     // likewise, to the same rank
  std::vector<int32_t> sent_to_expert;  // [num_physical]
  std::vector<int32_t> sent_to_rank;    // [num_ranks]
  std::vector<Copy> copies;
  Routed routed;
  int num_tokens = 0;
  // Signals counted so far, of each kind, from every rank of this host.
  uint64_t rows_seen = 0, outputs_seen = 0;
};

// Everything that belongs to one epoch.
struct Group {
  EpTopology topology;
  std::vector<bool> shares_memory;  // by rank; itself too
  int num_sharing = 0;              // other ranks of this host
  SharedSegment own;
  std::vector<SharedSegment> segments;  // by rank
  std::unique_ptr<TcpPeers> tcp;
  std::vector<std::unique_ptr<GroupHandle>> handles;
};

class GroupTransport : public ExpertTransport {
 public:
  explicit GroupTransport(TransportOptions options)
      : options_(std::move(options)), layout_(options_.layout.value_or(ExpertLayout::kContiguous)) {}
  Status open();

  ExpertLayout layout() const override { return layout_; }
  Result<EpPeer> listen() override { return EpPeer{-1, meeting_->address(), host_}; }
  size_t buffer_bytes(const MoeShape& shape, int max_num_tokens, int num_microbatches) const override;
  Status configure(const EpTopology& topology, const MoeShape& shape, int max_num_tokens,
                   int num_microbatches) override;
  DispatchHandle& handle(int microbatch) override { return *group_->handles.at(microbatch); }
  void dispatch_start(Lane& lane, DispatchHandle& handle, const Routed& routed) override;
  void dispatch_finish(Lane& lane, DispatchHandle& handle, ExpertBatch& batch) override;
  void combine_start(Lane& lane, DispatchHandle& handle, const ExpertBatch& batch) override;
  void combine_finish(Lane& lane, DispatchHandle& handle, Tensor out) override;
  void abort(Epoch epoch) override;
  Traffic traffic() const override { return traffic_; }
  Status status() const override;

 private:
  Status check(const EpTopology& topology, const MoeShape& shape, int max_num_tokens, int num_microbatches) const;
  Result<std::vector<bool>> who_shares(const EpTopology& topology) const;
  Status map_segments(Group& group, std::vector<MetPeer>& met, int num_microbatches);
  Status make_handles(Group& group, int num_microbatches);

  bool count_pairs(GroupHandle& h);
  void lay_out_rows(Lane& lane, GroupHandle& h);
  bool see_sources(GroupHandle& h);
  bool place_rows(GroupHandle& h);
  void gather(Lane& lane, GroupHandle& h);
  void fill_batch(GroupHandle& h, ExpertBatch& batch) const;
  const std::byte* output_of(GroupHandle& h, const std::vector<const std::byte*>& remote, int64_t pair);

  bool ok() const { return !faulty_.load(std::memory_order_relaxed); }
  void fault(Error why, int layer, const char* half);
  bool wait(ArrivalCounter& counter, uint64_t& seen, const GroupHandle& h, const char* half);
  void signal(const GroupHandle& h, ArrivalCounter Area::Head::*counter);

  const TransportOptions options_;
  const ExpertLayout layout_;
  std::string host_;
  std::unique_ptr<MeetingPoint> meeting_;
  MoeShape shape_;
  Sizes sizes_;
  Traffic traffic_;

  mutable std::mutex mutex_;  // of the following, and of group_ being replaced: abort() comes from any thread
  std::unique_ptr<Group> group_;
  std::optional<Error> fault_;
  std::atomic<bool> faulty_{false};
};

Status GroupTransport::open() {
  host_ = host_id();
  std::string tcp_host;
  if (options_.kind != "shm") {
    MANTA_ASSIGN(tcp_host, interface_address(options_.interface));
  }
  MANTA_ASSIGN(meeting_, MeetingPoint::open(tcp_host));
  return {};
}

size_t GroupTransport::buffer_bytes(const MoeShape& shape, int max_num_tokens, int num_microbatches) const {
  const Sizes s = sizes_of(shape, layout(), max_num_tokens);
  return num_microbatches * (Area::bytes(s) + aligned(s.row_bytes * s.capacity));
}

Status GroupTransport::check(const EpTopology& topology, const MoeShape& shape, int max_num_tokens,
                             int num_microbatches) const {
  const auto bad = [](std::string message) {
    return error(ErrorCode::kInvalidArgument, "expert transport: " + std::move(message));
  };
  if (topology.size < 1 || topology.rank < 0 || topology.rank >= topology.size ||
      (topology.size > 1 && static_cast<int>(topology.peers.size()) != topology.size)) {
    return bad(fmt::format("rank {} of {} with {} peers", topology.rank, topology.size, topology.peers.size()));
  }
  if (shape.num_local_experts * topology.size != shape.num_physical_experts) {
    return bad(fmt::format("{} experts on each of {} ranks are not {} experts", shape.num_local_experts, topology.size,
                           shape.num_physical_experts));
  }
  if (shape.wire_dtype != DType::kF32 && shape.wire_dtype != DType::kBF16) {
    return bad(fmt::format("wire dtype {}: F32 or BF16", to_string(shape.wire_dtype)));
  }
  if (shape.hidden_size < 1 || shape.num_experts_per_tok < 1 || shape.num_local_experts < 1 || max_num_tokens < 1 ||
      num_microbatches < 1) {
    return bad(fmt::format("hidden_size {}, top_k {}, {} experts, {} tokens, {} microbatches: each must be 1 or more",
                           shape.hidden_size, shape.num_experts_per_tok, shape.num_local_experts, max_num_tokens,
                           num_microbatches));
  }
  const Sizes s = sizes_of(shape, layout(), max_num_tokens);
  if (s.capacity > INT32_MAX) return bad(fmt::format("{} rows a step: at most {}", s.capacity, INT32_MAX));
  return {};
}

Result<std::vector<bool>> GroupTransport::who_shares(const EpTopology& topology) const {
  std::vector<bool> out(topology.size, false);
  for (int rank = 0; rank < topology.size; ++rank) {
    const bool here = rank == topology.rank || topology.peers[rank].host_id == host_;
    out[rank] = rank == topology.rank || (options_.kind != "tcp" && here);
    if (options_.kind == "shm" && !here) {
      return error(ErrorCode::kFailedPrecondition,
                   fmt::format("expert transport shm: rank {} is on another host ({}, this is {}); use auto or tcp",
                               rank, topology.peers[rank].host_id, host_));
    }
  }
  return out;
}

Status GroupTransport::configure(const EpTopology& topology, const MoeShape& shape, int max_num_tokens,
                                 int num_microbatches) {
  MANTA_TRY(check(topology, shape, max_num_tokens, num_microbatches));
  {
    const std::lock_guard lock(mutex_);
    group_.reset();
  }
  shape_ = shape;
  sizes_ = sizes_of(shape, layout(), max_num_tokens);
  auto group = std::make_unique<Group>();
  group->topology = topology;
  MANTA_ASSIGN(group->shares_memory, who_shares(topology));
  group->num_sharing = static_cast<int>(std::count(group->shares_memory.begin(), group->shares_memory.end(), true)) - 1;
  MANTA_ASSIGN(group->own, SharedSegment::create(Area::bytes(sizes_) * num_microbatches));
  std::vector<MetPeer> met(topology.size);
  if (topology.size > 1) {
    MANTA_ASSIGN(met, meeting_->meet(
                          {topology, group->shares_memory, group->own.fd(), Clock::now() + options_.connect_deadline}));
  }
  MANTA_TRY(map_segments(*group, met, num_microbatches));
  group->tcp = std::make_unique<TcpPeers>(
      TcpShape{topology.rank, num_microbatches, max_num_tokens, sizes_.top_k, sizes_.experts, sizes_.row_bytes}, met);
  MANTA_TRY(make_handles(*group, num_microbatches));
  const std::lock_guard lock(mutex_);
  group_ = std::move(group);
  fault_.reset();
  faulty_ = false;
  return {};
}

Status GroupTransport::map_segments(Group& group, std::vector<MetPeer>& met, int num_microbatches) {
  group.segments.resize(group.topology.size);
  for (int rank = 0; rank < group.topology.size; ++rank) {
    if (rank == group.topology.rank || !group.shares_memory[rank]) continue;
    MANTA_ASSIGN(group.segments[rank],
                 SharedSegment::adopt(met[rank].segment.release(), Area::bytes(sizes_) * num_microbatches));
  }
  return {};
}

Status GroupTransport::make_handles(Group& group, int num_microbatches) {
  const int64_t d = shape_.hidden_size;
  for (int m = 0; m < num_microbatches; ++m) {
    auto h = std::make_unique<GroupHandle>();
    h->microbatch = m;
    h->batch_rows = make_bytes(sizes_.row_bytes * sizes_.capacity);
    if (!h->batch_rows) {
      return error(ErrorCode::kResourceExhausted, fmt::format("expert transport: no memory for {} bytes of expert rows",
                                                              sizes_.row_bytes * sizes_.capacity));
    }
    for (int rank = 0; rank < group.topology.size; ++rank) {
      std::byte* at = rank == group.topology.rank ? group.own.data() : group.segments[rank].data();
      h->areas.emplace_back(at ? at + m * Area::bytes(sizes_) : nullptr, sizes_);
    }
    const auto tensor = [&](std::byte* bytes) {
      return layout() == ExpertLayout::kContiguous
                 ? make_tensor(bytes, shape_.wire_dtype, {sizes_.capacity, d})
                 : make_tensor(bytes, shape_.wire_dtype, {sizes_.experts, sizes_.plane, d});
    };
    h->hidden = tensor(h->batch_rows.get());
    h->output = tensor(h->areas[group.topology.rank].outputs());
    h->sources.resize(group.topology.size);
    h->offsets.assign(sizes_.experts + 1, 0);
    h->counts.assign(sizes_.experts, 0);
    h->sent_to_expert.assign(shape_.num_physical_experts, 0);
    h->sent_to_rank.assign(group.topology.size, 0);
    group.handles.push_back(std::move(h));
  }
  return {};
}

// ---- dispatch ----------------------------------------------------------------------------------------------------

// Where each of our pairs will stand among those that went to the same expert, and to the same rank.
bool GroupTransport::count_pairs(GroupHandle& h) {
  const int64_t pairs = static_cast<int64_t>(h.num_tokens) * sizes_.top_k;
  const int32_t* ids = h.routed.topk_id.as<int32_t>();
  std::fill(h.sent_to_expert.begin(), h.sent_to_expert.end(), 0);
  std::fill(h.sent_to_rank.begin(), h.sent_to_rank.end(), 0);
  h.nth_of_expert.resize(pairs);
  h.nth_of_rank.resize(pairs);
  for (int64_t i = 0; i < pairs; ++i) {
    if (ids[i] == -1) continue;
    if (ids[i] < 0 || ids[i] >= shape_.num_physical_experts) {
      fault(error(ErrorCode::kInternal,
                  fmt::format("expert {} of {} was routed to", ids[i], shape_.num_physical_experts)),
            h.routed.layer, "dispatch");
      return false;
    }
    h.nth_of_expert[i] = h.sent_to_expert[ids[i]]++;
    h.nth_of_rank[i] = h.sent_to_rank[ids[i] / sizes_.experts]++;
  }
  for (int rank = 0; rank < group_->topology.size; ++rank) {
    if (rank == group_->topology.rank) continue;
    traffic_.rows += h.sent_to_rank[rank];
    if (group_->shares_memory[rank]) traffic_.bytes += h.sent_to_rank[rank] * sizes_.row_bytes;
  }
  return true;
}

void GroupTransport::lay_out_rows(Lane& lane, GroupHandle& h) {
  const auto* from = static_cast<const std::byte*>(h.routed.hidden.data);
  std::byte* to = h.areas[group_->topology.rank].rows();
  lane.parallel_for(h.num_tokens, kRowsPerPiece, [&](int64_t begin, int64_t end) {
    std::memcpy(to + begin * sizes_.row_bytes, from + begin * sizes_.row_bytes, (end - begin) * sizes_.row_bytes);
  });
}

void GroupTransport::dispatch_start(Lane& lane, DispatchHandle& handle, const Routed& routed) {
  auto& h = static_cast<GroupHandle&>(handle);
  h.routed = routed;
  h.num_tokens = static_cast<int>(routed.hidden.shape[0]);
  if (!ok()) return;
  if (h.num_tokens > sizes_.max_tokens) {
    return fault(error(ErrorCode::kInternal, fmt::format("{} tokens, made for {}", h.num_tokens, sizes_.max_tokens)),
                 routed.layer, "dispatch");
  }
  assert(h.num_tokens == 0 || (routed.hidden.dtype == shape_.wire_dtype && routed.hidden.is_contiguous()));
  if (!count_pairs(h)) return;
  Area& own = h.areas[group_->topology.rank];
  if (group_->num_sharing > 0) {
    own.head().num_tokens = h.num_tokens;
    own.head().more = routed.more;
    if (h.num_tokens > 0) {
      std::memcpy(own.ids(), routed.topk_id.data, sizeof(int32_t) * h.num_tokens * sizes_.top_k);
    }
    lay_out_rows(lane, h);
    signal(h, &Area::Head::rows);
  }
  for (const int rank : group_->tcp->ranks()) {
    const auto sent =
        group_->tcp->send_rows(rank, h.microbatch, h.num_tokens, routed.more, routed.topk_id.as<int32_t>(),
                               static_cast<const std::byte*>(routed.hidden.data));
    if (!sent.ok()) return fault(sent.error(), routed.layer, "dispatch");
    traffic_.bytes += *sent * sizes_.row_bytes;
  }
}

bool GroupTransport::see_sources(GroupHandle& h) {
  const int me = group_->topology.rank;
  Area& own = h.areas[me];
  if (!wait(own.head().rows, h.rows_seen, h, "dispatch")) return false;
  for (int rank = 0; rank < group_->topology.size; ++rank) {
    Source& s = h.sources[rank];
    if (rank == me) {
      s = {h.num_tokens,
           h.routed.more,
           h.routed.topk_id.as<int32_t>(),
           static_cast<const std::byte*>(h.routed.hidden.data),
           nullptr,
           std::move(s.batch_row)};
    } else if (group_->shares_memory[rank]) {
      const Area& area = h.areas[rank];
      s = {std::clamp(area.head().num_tokens, 0, sizes_.max_tokens),
           area.head().more != 0,
           area.ids(),
           area.rows(),
           nullptr,
           std::move(s.batch_row)};
    } else {
      const auto rows = group_->tcp->wait_rows(rank, h.microbatch, Clock::now() + options_.wait_deadline);
      if (!rows.ok()) return fault(rows.error(), h.routed.layer, "dispatch"), false;
      s = {(*rows)->num_tokens,          (*rows)->more,         (*rows)->ids.data(), (*rows)->rows.data(),
           (*rows)->row_of_token.data(), std::move(s.batch_row)};
    }
  }
  return true;
}

// Every pair of every source that is ours gets its row; own.base() says where each source begins in each expert.
bool GroupTransport::place_rows(GroupHandle& h) {
  const int me = group_->topology.rank;
  const int first_expert = me * sizes_.experts;
  int32_t* base = h.areas[me].base();
  std::fill(h.counts.begin(), h.counts.end(), 0);
  for (size_t rank = 0; rank < h.sources.size(); ++rank) {
    Source& s = h.sources[rank];
    const int64_t pairs = static_cast<int64_t>(s.num_tokens) * sizes_.top_k;
    s.batch_row.resize(pairs);
    std::copy(h.counts.begin(), h.counts.end(), base + rank * sizes_.experts);
    for (int64_t i = 0; i < pairs; ++i) {
      const int e = s.ids[i] - first_expert;
      s.batch_row[i] = e >= 0 && e < sizes_.experts ? h.counts[e]++ : -1;  // for now within its expert
    }
  }
  const bool contiguous = layout() == ExpertLayout::kContiguous;
  for (int e = 0; e < sizes_.experts; ++e) h.offsets[e + 1] = h.offsets[e] + h.counts[e];
  const bool too_many = contiguous ? h.offsets[sizes_.experts] > sizes_.capacity
                                   : *std::max_element(h.counts.begin(), h.counts.end()) > sizes_.plane;
  if (too_many) {
    fault(error(ErrorCode::kInternal, "a token was routed to one expert twice"), h.routed.layer, "dispatch");
    return false;
  }
  const auto start_of = [&](int e) { return static_cast<int32_t>(contiguous ? h.offsets[e] : e * sizes_.plane); };
  for (Source& s : h.sources) {
    for (size_t i = 0; i < s.batch_row.size(); ++i) {
      if (s.batch_row[i] >= 0) s.batch_row[i] += start_of(s.ids[i] - first_expert);
    }
  }
  for (size_t rank = 0; rank < h.sources.size(); ++rank) {
    for (int e = 0; e < sizes_.experts; ++e) base[rank * sizes_.experts + e] += start_of(e);
  }
  return true;
}

void GroupTransport::gather(Lane& lane, GroupHandle& h) {
  h.copies.clear();
  for (const Source& s : h.sources) {
    for (size_t pair = 0; pair < s.batch_row.size(); ++pair) {
      if (s.batch_row[pair] < 0) continue;
      h.copies.push_back({s.row(static_cast<int>(pair) / sizes_.top_k, sizes_.row_bytes), s.batch_row[pair]});
    }
  }
  std::byte* batch = h.batch_rows.get();
  lane.parallel_for(static_cast<int64_t>(h.copies.size()), kRowsPerPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(batch + h.copies[i].to_row * sizes_.row_bytes, h.copies[i].from, sizes_.row_bytes);
    }
  });
}

void GroupTransport::dispatch_finish(Lane& lane, DispatchHandle& handle, ExpertBatch& batch) {
  auto& h = static_cast<GroupHandle&>(handle);
  std::fill(h.offsets.begin(), h.offsets.end(), 0);
  if (ok() && see_sources(h) && place_rows(h)) {
    gather(lane, h);
  } else {
    for (Source& s : h.sources) s.more = false;
    std::fill(h.offsets.begin(), h.offsets.end(), 0);
    std::fill(h.counts.begin(), h.counts.end(), 0);
  }
  fill_batch(h, batch);
}

void GroupTransport::fill_batch(GroupHandle& h, ExpertBatch& batch) const {
  batch = {};
  batch.layout = layout();
  batch.hidden = h.hidden;
  batch.output = h.output;
  batch.more = std::any_of(h.sources.begin(), h.sources.end(), [](const Source& s) { return s.more; });
  if (layout() == ExpertLayout::kContiguous) {
    batch.row_offsets = make_tensor(h.offsets.data(), DType::kI32, {sizes_.experts + 1});
    batch.max_rows = h.offsets[sizes_.experts];
  } else {
    batch.num_rows = make_tensor(h.counts.data(), DType::kI32, {sizes_.experts});
    batch.max_rows = *std::max_element(h.counts.begin(), h.counts.end());
  }
}

// ---- combine -----------------------------------------------------------------------------------------------------

void GroupTransport::combine_start(Lane&, DispatchHandle& handle, const ExpertBatch&) {
  auto& h = static_cast<GroupHandle&>(handle);
  if (!ok()) return;
  if (group_->num_sharing > 0) signal(h, &Area::Head::outputs);
  const std::byte* outputs = h.areas[group_->topology.rank].outputs();
  std::vector<const std::byte*> rows;
  for (const int rank : group_->tcp->ranks()) {
    rows.clear();
    for (const int32_t row : h.sources[rank].batch_row) {
      if (row >= 0) rows.push_back(outputs + row * sizes_.row_bytes);
    }
    const Status sent = group_->tcp->send_outputs(rank, h.microbatch, rows);
    if (!sent.ok()) return fault(sent.error(), h.routed.layer, "combine");
  }
}

const std::byte* GroupTransport::output_of(GroupHandle& h, const std::vector<const std::byte*>& remote, int64_t pair) {
  const int32_t id = h.routed.topk_id.as<int32_t>()[pair];
  if (id < 0) return nullptr;
  const int rank = id / sizes_.experts;
  if (remote[rank]) return remote[rank] + h.nth_of_rank[pair] * sizes_.row_bytes;
  const Area& area = h.areas[rank];
  const int64_t row = area.base()[group_->topology.rank * sizes_.experts + id % sizes_.experts] + h.nth_of_expert[pair];
  assert(row >= 0 && row < sizes_.capacity);
  return area.outputs() + row * static_cast<int64_t>(sizes_.row_bytes);
}

void GroupTransport::combine_finish(Lane& lane, DispatchHandle& handle, Tensor out) {
  auto& h = static_cast<GroupHandle&>(handle);
  if (!ok() || !wait(h.areas[group_->topology.rank].head().outputs, h.outputs_seen, h, "combine")) return;
  std::vector<const std::byte*> remote(group_->topology.size, nullptr);
  for (const int rank : group_->tcp->ranks()) {
    const auto rows =
        group_->tcp->wait_outputs(rank, h.microbatch, h.sent_to_rank[rank], Clock::now() + options_.wait_deadline);
    if (!rows.ok()) return fault(rows.error(), h.routed.layer, "combine");
    remote[rank] = *rows;
  }
  const float* weights = h.routed.topk_weight.as<float>();
  assert(out.dtype == DType::kF32 && out.shape[0] >= h.num_tokens && out.shape[1] == shape_.hidden_size);
  lane.parallel_for(h.num_tokens, kRowsPerPiece, [&](int64_t begin, int64_t end) {
    std::vector<WeightedRow> rows;
    rows.reserve(sizes_.top_k);
    for (int64_t t = begin; t < end; ++t) {
      rows.clear();
      for (int64_t pair = t * sizes_.top_k; pair < (t + 1) * sizes_.top_k; ++pair) {
        if (const std::byte* row = output_of(h, remote, pair)) rows.push_back({weights[pair], row});
      }
      combine_row(rows, shape_.wire_dtype, shape_.hidden_size, out.as<float>() + t * out.stride[0]);
    }
  });
}

// ---- signals and faults ------------------------------------------------------------------------------------------

void GroupTransport::signal(const GroupHandle& h, ArrivalCounter Area::Head::*counter) {
  for (int rank = 0; rank < group_->topology.size; ++rank) {
    if (rank != group_->topology.rank && group_->shares_memory[rank]) (h.areas[rank].head().*counter).add();
  }
}

bool GroupTransport::wait(ArrivalCounter& counter, uint64_t& seen, const GroupHandle& h, const char* half) {
  if (group_->num_sharing == 0) return true;
  seen += group_->num_sharing;
  switch (counter.wait_for(seen, Clock::now() + options_.wait_deadline)) {
    case ArrivalCounter::Wait::kReached: return true;
    case ArrivalCounter::Wait::kClosed:
      fault(error(ErrorCode::kAborted, fmt::format("epoch {} is over", group_->topology.epoch.value)), h.routed.layer,
            half);
      return false;
    case ArrivalCounter::Wait::kDeadline: break;
  }
  fault(error(ErrorCode::kDeadlineExceeded,
              fmt::format("a rank of this host did not come within {} s", options_.wait_deadline.count() / 1000)),
        h.routed.layer, half);
  return false;
}

void GroupTransport::fault(Error why, int layer, const char* half) {
  const std::lock_guard lock(mutex_);
  if (fault_) return;
  fault_ = error(why.code, fmt::format("expert transport, rank {}, MoE layer {}, {}: {}", group_->topology.rank, layer,
                                       half, why.message));
  faulty_ = true;
}

void GroupTransport::abort(Epoch epoch) {
  meeting_->abort(epoch);
  const std::lock_guard lock(mutex_);
  if (!group_ || !(group_->topology.epoch < epoch)) return;
  if (!fault_) {
    fault_ = error(ErrorCode::kAborted,
                   fmt::format("epoch {} is over, {} is the current one", group_->topology.epoch.value, epoch.value));
    faulty_ = true;
  }
  for (const auto& h : group_->handles) {
    Area::Head& own = h->areas[group_->topology.rank].head();
    own.rows.close();
    own.outputs.close();
  }
  group_->tcp->close();
}

Status GroupTransport::status() const {
  const std::lock_guard lock(mutex_);
  return fault_ ? Status(*fault_) : Status();
}

}  // namespace

Result<std::unique_ptr<ExpertTransport>> make_group_transport(const TransportOptions& options) {
  auto out = std::make_unique<GroupTransport>(options);
  MANTA_TRY(out->open());
  return Result<std::unique_ptr<ExpertTransport>>(std::move(out));
}

}  // namespace manta::ep
