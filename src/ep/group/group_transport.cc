#include "ep/group/group_transport.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

#include "ep/combine.h"
#include "ep/host.h"

namespace manta::ep {

namespace {

constexpr size_t kBytesPerPiece = 64 << 10;

int64_t grain_of(size_t row_bytes) {
  return static_cast<int64_t>(std::max<size_t>(1, kBytesPerPiece / row_bytes));
}

Error internal(std::string message) {
  return error(ErrorCode::kInternal, std::move(message));
}

}  // namespace

class GroupTransport::Handle : public DispatchHandle {
 public:
  static Result<std::unique_ptr<Handle>> make(const Group& group, int microbatch) {
    const GroupShape& shape = group.shape();
    auto h = std::make_unique<Handle>();
    h->microbatch = microbatch;
    h->assembly = RowAssembly(shape, group.rank());
    MANTA_ASSIGN(h->hidden_bytes, Mapping::make(static_cast<size_t>(shape.capacity()) * shape.row_bytes(), -1));
    const DType wire = shape.moe.wire_dtype;
    const int64_t d = shape.moe.hidden_size;
    const auto tensor = [&](void* data) {
      return shape.layout == ExpertLayout::kContiguous
                 ? make_tensor(data, wire, {shape.capacity(), d})
                 : make_tensor(data, wire, {shape.moe.num_local_experts, shape.max_rows_per_expert(), d});
    };
    h->hidden = tensor(h->hidden_bytes.data());
    h->output = tensor(group.own().output(microbatch));
    h->outputs.resize(shape.pairs());
    h->row_of.resize(static_cast<size_t>(group.size()));
    h->ids_to.resize(static_cast<size_t>(group.size()));
    return h;
  }

  int microbatch = 0;
  uint32_t round = 0;  // dispatches started
  Routed routed;
  int num_tokens = 0;
  bool live = false;  // between a dispatch_start that went well and combine_finish
  RowAssembly assembly;
  Mapping hidden_bytes;
  Tensor hidden, output;  // [capacity, D]; the output lies in the segment
  std::vector<RowSource> sources;
  std::vector<WeightedRow> outputs;          // [T, top_k] where each output is, compacted per token
  std::vector<int32_t> first_output;         // [T + 1] into outputs
  std::vector<std::vector<int32_t>> row_of;  // by rank over tcp, and this one: [n, top_k] rows of the batch
  std::vector<std::vector<int32_t>> ids_to;  // by rank over tcp: ids of the tokens sent there
  std::vector<int32_t> next_returned;        // by rank, while outputs are located
  std::vector<iovec> parts;
};

GroupTransport::GroupTransport(Reach reach, ExpertLayout layout, const TransportOptions& options)
    : reach_(reach), layout_(layout), options_(options) {}

GroupTransport::~GroupTransport() {
  leave();
}

DispatchHandle& GroupTransport::handle(int microbatch) {
  return *handles_.at(microbatch);
}

// ---- forming the group --------------------------------------------------------------------------------------------

Result<EpPeer> GroupTransport::listen() {
  if (!service_) {
    PeerService::Options options;
    options.listen_unix = reach_ != Reach::kTcp;
    options.listen_tcp = reach_ != Reach::kShared;
    options.interface = options_.interface;
    MANTA_ASSIGN(service_, PeerService::start(options));
  }
  EpPeer peer;
  peer.address = service_->address().text();
  peer.host_id = host_id();
  return peer;
}

GroupShape GroupTransport::group_shape(const MoeShape& shape, int size, int max_num_tokens,
                                       int num_microbatches) const {
  GroupShape out;
  out.moe = shape;
  out.layout = layout_;
  out.size = size;
  out.max_num_tokens = max_num_tokens;
  out.num_microbatches = num_microbatches;
  return out;
}

// Of the worst routing; pages that no row ever reaches are never taken.
size_t GroupTransport::buffer_bytes(const MoeShape& shape, int max_num_tokens, int num_microbatches) const {
  const int size = shape.num_local_experts > 0 ? shape.num_physical_experts / shape.num_local_experts : 1;
  const GroupShape s = group_shape(shape, size, max_num_tokens, num_microbatches);
  const size_t received = static_cast<size_t>(s.capacity()) * s.row_bytes();
  // Over tcp, what each peer can send in either half.
  const size_t staged =
      reach_ == Reach::kShared
          ? 0
          : (size - 1) * ((s.max_num_tokens + s.pairs()) * s.row_bytes() + s.pairs() * sizeof(int32_t));
  return Segment::num_bytes(s) + num_microbatches * (received + staged);
}

Result<std::vector<LinkKind>> GroupTransport::link_kinds(const EpTopology& topology) const {
  std::vector<LinkKind> kinds;
  const std::string& here = topology.peers[topology.rank].host_id;  // as it was announced
  for (int r = 0; r < topology.size; ++r) {
    const bool same_host = !here.empty() && topology.peers[r].host_id == here;
    if (r == topology.rank) {
      kinds.push_back(LinkKind::kSelf);
    } else if (reach_ == Reach::kTcp || (reach_ == Reach::kBoth && !same_host)) {
      kinds.push_back(LinkKind::kTcp);
    } else if (same_host) {
      kinds.push_back(LinkKind::kShared);
    } else {
      return error(
          ErrorCode::kInvalidArgument,
          fmt::format("EP rank {} is on another host ({}; here {}): the shm transport cannot reach it, auto or "
                      "tcp can",
                      r, topology.peers[r].host_id, here));
    }
  }
  return kinds;
}

Status GroupTransport::configure(const EpTopology& topology, const MoeShape& shape, int max_num_tokens,
                                 int num_microbatches) {
  leave();
  const GroupShape s = group_shape(shape, topology.size, max_num_tokens, num_microbatches);
  if (topology.size < 1 || topology.rank < 0 || topology.rank >= topology.size ||
      (topology.size > 1 && topology.peers.size() != static_cast<size_t>(topology.size))) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("EP rank {} of {} with {} peers", topology.rank, topology.size, topology.peers.size()));
  }
  MANTA_TRY(check(s));
  Status formed = form(topology, s);
  if (!formed.ok()) leave();
  return formed;
}

Status GroupTransport::form(const EpTopology& topology, const GroupShape& shape) {
  std::vector<LinkKind> kinds = {LinkKind::kSelf};
  EpTopology named = topology;
  named.peers.resize(static_cast<size_t>(topology.size));
  if (topology.size > 1) {
    if (!service_) return error(ErrorCode::kFailedPrecondition, "expert transport: configure() before listen()");
    MANTA_ASSIGN(kinds, link_kinds(topology));
  }
  MANTA_ASSIGN(std::shared_ptr<Group> group, Group::make(named, shape, kinds));
  {
    const std::lock_guard lock(mutex_);
    if (topology.epoch < aborted_below_) {
      return error(ErrorCode::kAborted,
                   fmt::format("epoch {} is over, {} is the current one", topology.epoch.value, aborted_below_.value));
    }
    group_ = group;
  }
  if (service_ && topology.size > 1) {
    service_->serve(group);
    MANTA_TRY(service_->connect(*group, std::chrono::steady_clock::now() + options_.connect_deadline));
  }
  for (int i = 0; i < shape.num_microbatches; ++i) {
    MANTA_ASSIGN(auto handle, Handle::make(*group, i));
    handles_.push_back(std::move(handle));
  }
  return {};
}

void GroupTransport::leave() {
  if (service_) service_->serve(nullptr);
  handles_.clear();
  cut_short_ = false;
  std::shared_ptr<Group> group;
  const std::lock_guard lock(mutex_);
  group = std::move(group_);
}

void GroupTransport::abort(Epoch epoch) {
  std::shared_ptr<Group> group;
  {
    const std::lock_guard lock(mutex_);
    aborted_below_ = std::max(aborted_below_, epoch);
    group = group_;
  }
  if (service_) service_->set_current_epoch(epoch);
  if (group && group->epoch() < epoch) {
    group->fail(error(ErrorCode::kAborted, fmt::format("epoch {} is over, {} is the current one; {}",
                                                       group->epoch().value, epoch.value, group->position())));
  }
}

Status GroupTransport::status() const {
  const std::lock_guard lock(mutex_);
  if (group_ && !cut_short_) return {};
  return group_ ? group_->status() : Status(error(ErrorCode::kFailedPrecondition, "expert transport: not configured"));
}

// ---- dispatch -----------------------------------------------------------------------------------------------------

// Checks what the router gave and shows it to the peers.
Status GroupTransport::bind(Handle& h, const Routed& routed) {
  const GroupShape& s = group_->shape();
  const int64_t tokens = routed.hidden.shape[0];
  if (tokens > s.max_num_tokens) return internal(fmt::format("{} tokens, made for {}", tokens, s.max_num_tokens));
  assert(tokens == 0 || (routed.hidden.dtype == s.moe.wire_dtype && routed.hidden.is_contiguous()));
  h.routed = routed;
  h.num_tokens = static_cast<int>(tokens);
  const int top_k = s.moe.num_experts_per_tok;
  const int32_t* ids = routed.topk_id.as<int32_t>();
  int32_t* shown = group_->own().topk_id(h.microbatch);
  int32_t* row_of = group_->own().row_of(h.microbatch);
  std::vector<int> seen(static_cast<size_t>(group_->size()), -1);  // last token that goes to the rank
  for (int64_t i = 0; i < tokens * top_k; ++i) {
    if (ids[i] < -1 || ids[i] >= s.moe.num_physical_experts) {
      return internal(fmt::format("expert {} of {} was routed to", ids[i], s.moe.num_physical_experts));
    }
    shown[i] = ids[i];
    row_of[i] = -1;
    if (ids[i] < 0) continue;
    const int rank = s.rank_of(ids[i]), token = static_cast<int>(i / top_k);
    if (rank == group_->rank() || seen[rank] == token) continue;
    seen[rank] = token;
    ++traffic_.rows;
    traffic_.bytes += s.row_bytes();
  }
  return {};
}

void GroupTransport::dispatch_start(Lane& lane, DispatchHandle& handle, const Routed& routed) {
  auto& h = static_cast<Handle&>(handle);
  Group& group = *group_;
  h.live = false;
  group.at("dispatch_start", routed.layer);
  if (group.failed()) {
    cut_short_ = true;
    return;
  }
  if (const Status bound = bind(h, routed); !bound.ok()) return fault(h, bound);
  h.live = true;
  ++h.round;
  const GroupShape& s = group.shape();
  Mailbox& box = group.own().mailbox(h.microbatch);
  box.layer = routed.layer;
  box.num_tokens = h.num_tokens;
  box.more = routed.more;
  const auto shares = [&](int r) { return group.peer(r).kind == LinkKind::kShared; };
  bool any_shared = false;
  for (int r = 0; r < group.size(); ++r) any_shared |= shares(r);
  if (any_shared) {
    const auto* from = static_cast<const char*>(routed.hidden.data);
    char* to = group.own().rows(h.microbatch);
    lane.parallel_for(h.num_tokens, grain_of(s.row_bytes()), [&](int64_t begin, int64_t end) {
      std::memcpy(to + begin * s.row_bytes(), from + begin * s.row_bytes(), (end - begin) * s.row_bytes());
    });
  }
  box.rounds_sent.store(h.round, std::memory_order_release);
  for (int r = 0; r < group.size(); ++r) {
    if (!shares(r)) continue;
    group.peer(r).segment->mailbox(h.microbatch).dispatched.arrive(static_cast<uint32_t>(group.size() - 1));
  }
  send_tcp_rows(h);
}

// To each rank over tcp: the tokens that have experts there, once each, with all their ids.
void GroupTransport::send_tcp_rows(Handle& h) {
  Group& group = *group_;
  const GroupShape& s = group.shape();
  const int top_k = s.moe.num_experts_per_tok;
  const int32_t* ids = h.routed.topk_id.as<int32_t>();
  auto* rows = static_cast<char*>(h.routed.hidden.data);
  for (int r = 0; r < group.size(); ++r) {
    if (group.peer(r).kind != LinkKind::kTcp) continue;
    std::vector<int32_t>& ids_to = h.ids_to[r];
    ids_to.clear();
    h.parts.assign(1, {});
    for (int t = 0; t < h.num_tokens; ++t) {
      const int32_t* of = ids + int64_t{t} * top_k;
      if (std::none_of(of, of + top_k, [&](int32_t id) { return id >= 0 && s.rank_of(id) == r; })) continue;
      ids_to.insert(ids_to.end(), of, of + top_k);
      char* row = rows + t * s.row_bytes();
      iovec& last = h.parts.back();
      if (h.parts.size() > 1 && static_cast<char*>(last.iov_base) + last.iov_len == row) {
        last.iov_len += s.row_bytes();
      } else {
        h.parts.push_back({row, s.row_bytes()});
      }
    }
    h.parts[0] = {ids_to.data(), ids_to.size() * sizeof(int32_t)};
    MessageHeader header;
    header.half = Half::kDispatch;
    header.microbatch = static_cast<uint16_t>(h.microbatch);
    header.layer = h.routed.layer;
    header.num_rows = static_cast<uint32_t>(ids_to.size() / top_k);
    header.more = h.routed.more;
    group.peer(r).stream->send(header, h.parts);
  }
}

bool GroupTransport::wait(WaitWord& word, Handle& h, Half half) {
  const auto expected = static_cast<uint32_t>(group_->size() - 1);
  WaitWord::Deadline deadline;
  if (options_.wait_deadline.count() > 0) deadline = std::chrono::steady_clock::now() + options_.wait_deadline;
  const WaitWord::Outcome outcome = word.wait(expected, deadline);
  if (outcome == WaitWord::Outcome::kTimedOut) {
    group_->fail(error(ErrorCode::kDeadlineExceeded,
                       fmt::format("EP rank {} did not arrive within {} ms; epoch {}, {}", missing(h, half),
                                   options_.wait_deadline.count(), group_->epoch().value, group_->position())));
  }
  if (outcome != WaitWord::Outcome::kArrived) cut_short_ = true;
  return outcome == WaitWord::Outcome::kArrived;
}

// This rank cannot go on; the others must not wait for it.
void GroupTransport::fault(Handle& h, const Status& why) {
  h.live = false;
  cut_short_ = true;
  group_->fail_and_leave(error(why.error().code, fmt::format("{}: {}", group_->position(), why.error().message)));
}

std::string GroupTransport::missing(const Handle& h, Half half) const {
  std::vector<int> ranks;
  for (int r = 0; r < group_->size(); ++r) {
    const Group::Peer& peer = group_->peer(r);
    bool there = true;
    if (peer.kind == LinkKind::kShared) {
      const Mailbox& box = peer.segment->mailbox(h.microbatch);
      there = (half == Half::kDispatch ? box.rounds_sent : box.rounds_returned).load() == h.round;
    } else if (peer.kind == LinkKind::kTcp) {
      there = peer.stream->has_received(half, h.microbatch);
    }
    if (!there) ranks.push_back(group_->number(r));
  }
  return fmt::format("{}", fmt::join(ranks, ", "));
}

// What every rank has for the experts here, by rank. Peers are not trusted to be in the same layer, nor with sizes.
Status GroupTransport::sources(Handle& h, std::vector<RowSource>& out) {
  Group& group = *group_;
  const GroupShape& s = group.shape();
  out.clear();
  bool more = h.routed.more;
  for (int r = 0; r < group.size(); ++r) {
    Group::Peer& peer = group.peer(r);
    RowSource source;
    int layer = h.routed.layer;
    if (peer.kind == LinkKind::kShared) {
      const Mailbox& box = peer.segment->mailbox(h.microbatch);
      layer = box.layer;
      more |= box.more != 0;
      source = {box.num_tokens, peer.segment->topk_id(h.microbatch), peer.segment->rows(h.microbatch),
                peer.segment->row_of(h.microbatch)};
    } else {
      if (peer.kind == LinkKind::kTcp) {
        const TcpStream::Received in = peer.stream->received(Half::kDispatch, h.microbatch);
        layer = in.header.layer;
        more |= in.header.more != 0;
        source = {static_cast<int>(in.header.num_rows), in.topk_id, in.rows, nullptr};
      } else {
        source = {h.num_tokens, h.routed.topk_id.as<int32_t>(), static_cast<const char*>(h.routed.hidden.data),
                  nullptr};
      }
      h.row_of[r].assign(static_cast<size_t>(source.num_tokens) * s.moe.num_experts_per_tok, -1);
      source.row_of = h.row_of[r].data();
    }
    if (layer != h.routed.layer || source.num_tokens < 0 || source.num_tokens > s.max_num_tokens) {
      return internal(fmt::format("{} sent {} tokens of MoE layer {} in microbatch {}: the ranks' steps differ",
                                  group.name(r), source.num_tokens, layer, h.microbatch));
    }
    out.push_back(source);
  }
  h.routed.more = more;  // from here on: of any rank
  return {};
}

void GroupTransport::dispatch_finish(Lane& lane, DispatchHandle& handle, ExpertBatch& batch) {
  auto& h = static_cast<Handle&>(handle);
  Group& group = *group_;
  const GroupShape& s = group.shape();
  group.at("dispatch_finish", h.routed.layer);
  h.live = h.live && wait(group.own().mailbox(h.microbatch).dispatched, h, Half::kDispatch);
  h.assembly.clear();
  if (h.live) {
    Status status = sources(h, h.sources);
    if (status.ok()) status = h.assembly.assign(h.sources);
    if (!status.ok()) fault(h, status);
  }
  h.assembly.copy(lane, static_cast<char*>(h.hidden.data));
  batch = {};
  batch.layout = layout_;
  batch.hidden = h.hidden;
  batch.output = h.output;
  batch.more = h.live && h.routed.more;
  if (layout_ == ExpertLayout::kContiguous) {
    batch.row_offsets = make_tensor(h.assembly.offsets().data(), DType::kI32, {s.moe.num_local_experts + 1});
    batch.max_rows = static_cast<int>(h.assembly.num_rows());
  } else {
    batch.num_rows = make_tensor(h.assembly.counts().data(), DType::kI32, {s.moe.num_local_experts});
    batch.max_rows = h.assembly.max_count();
  }
}

// ---- combine ------------------------------------------------------------------------------------------------------

void GroupTransport::combine_start(Lane&, DispatchHandle& handle, const ExpertBatch&) {
  auto& h = static_cast<Handle&>(handle);
  Group& group = *group_;
  group.at("combine_start", h.routed.layer);
  if (!h.live) return;
  group.own().mailbox(h.microbatch).rounds_returned.store(h.round, std::memory_order_release);
  for (int r = 0; r < group.size(); ++r) {
    if (group.peer(r).kind != LinkKind::kShared) continue;
    group.peer(r).segment->mailbox(h.microbatch).combined.arrive(static_cast<uint32_t>(group.size() - 1));
  }
  return_tcp_rows(h);
}

// To each rank over tcp: the outputs for its tokens, in the order of token and k.
void GroupTransport::return_tcp_rows(Handle& h) {
  Group& group = *group_;
  const GroupShape& s = group.shape();
  for (int r = 0; r < group.size(); ++r) {
    if (group.peer(r).kind != LinkKind::kTcp) continue;
    h.parts.clear();
    for (const int32_t row : h.row_of[r]) {
      if (row >= 0) h.parts.push_back({static_cast<char*>(h.output.data) + row * s.row_bytes(), s.row_bytes()});
    }
    group.peer(r).stream->take(Half::kDispatch, h.microbatch);
    MessageHeader header;
    header.half = Half::kCombine;
    header.microbatch = static_cast<uint16_t>(h.microbatch);
    header.layer = h.routed.layer;
    header.num_rows = static_cast<uint32_t>(h.parts.size());
    group.peer(r).stream->send(header, h.parts);
  }
}

// Where the outputs of every token lie, in the order of k.
Status GroupTransport::locate_outputs(Handle& h) {
  Group& group = *group_;
  const GroupShape& s = group.shape();
  const int top_k = s.moe.num_experts_per_tok;
  const int32_t* ids = group.own().topk_id(h.microbatch);
  const int32_t* row_of = group.own().row_of(h.microbatch);
  const float* weights = h.routed.topk_weight.as<float>();
  h.outputs.clear();
  h.first_output.assign(1, 0);
  h.next_returned.assign(static_cast<size_t>(group.size()), 0);
  for (int64_t i = 0; i < int64_t{h.num_tokens} * top_k; ++i) {
    if (ids[i] >= 0) {
      const int r = s.rank_of(ids[i]);
      Group::Peer& peer = group.peer(r);
      const char* rows = nullptr;
      int64_t row = 0;
      if (peer.kind == LinkKind::kTcp) {
        rows = peer.stream->received(Half::kCombine, h.microbatch).rows;
        row = h.next_returned[r]++;
      } else {
        rows = peer.kind == LinkKind::kSelf ? static_cast<char*>(h.output.data) : peer.segment->output(h.microbatch);
        row = peer.kind == LinkKind::kSelf ? h.row_of[r][i] : row_of[i];
        if (row < 0 || row >= s.capacity()) return internal(fmt::format("{} returned row {}", group.name(r), row));
      }
      h.outputs.push_back({weights[i], rows + row * s.row_bytes()});
    }
    if ((i + 1) % top_k == 0) h.first_output.push_back(static_cast<int32_t>(h.outputs.size()));
  }
  for (int r = 0; r < group.size(); ++r) {
    if (group.peer(r).kind != LinkKind::kTcp) continue;
    const auto returned = group.peer(r).stream->received(Half::kCombine, h.microbatch).header.num_rows;
    if (returned == static_cast<uint32_t>(h.next_returned[r])) continue;
    return internal(fmt::format("{} returned {} rows of {}", group.name(r), returned, h.next_returned[r]));
  }
  return {};
}

void GroupTransport::combine_finish(Lane& lane, DispatchHandle& handle, Tensor out) {
  auto& h = static_cast<Handle&>(handle);
  Group& group = *group_;
  const GroupShape& s = group.shape();
  group.at("combine_finish", h.routed.layer);
  if (!h.live || !wait(group.own().mailbox(h.microbatch).combined, h, Half::kCombine)) return;
  h.live = false;
  if (const Status status = locate_outputs(h); !status.ok()) return fault(h, status);
  assert(out.dtype == DType::kF32 && out.shape[0] >= h.num_tokens && out.shape[1] == s.moe.hidden_size);
  lane.parallel_for(h.num_tokens, grain_of(s.row_bytes() * s.moe.num_experts_per_tok), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const std::span<const WeightedRow> rows(h.outputs.data() + h.first_output[t],
                                              h.outputs.data() + h.first_output[t + 1]);
      combine_row(rows, s.moe.wire_dtype, s.moe.hidden_size, out.as<float>() + t * out.stride[0]);
    }
  });
  for (int r = 0; r < group.size(); ++r) {
    if (group.peer(r).kind == LinkKind::kTcp) group.peer(r).stream->take(Half::kCombine, h.microbatch);
  }
}

}  // namespace manta::ep
