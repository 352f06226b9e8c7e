// The expert transport between processes. Rows are pulled: a rank leaves what it routed and its rows, once per token,
// where the others can read them (its segment, or a message), and each rank takes the rows of its experts from there.
// The experts write into the segment; whoever owns a token reads its k outputs in place and sums them. So over shared
// memory a row is copied once on the way out per expert, and not at all on the way back.
//
// Two waits a round, one per half; each ends when the last peer has arrived. Nothing of a round is overwritten before
// its readers are done: a rank starts its next dispatch after combine_finish, which needed every peer's combine_start,
// which came after that peer's dispatch_finish; and experts write outputs after dispatch_finish, which needed every
// peer's next dispatch_start, which came after its combine_finish.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "ep/expert_transport.h"
#include "ep/group/group.h"
#include "ep/group/peer_service.h"
#include "ep/group/row_assembly.h"

namespace manta::ep {

class GroupTransport : public ExpertTransport {
 public:
  enum class Reach { kShared, kTcp, kBoth };  // kBoth: shared memory on one host, tcp beyond
  GroupTransport(Reach reach, ExpertLayout layout, const TransportOptions& options);
  ~GroupTransport() override;

  ExpertLayout layout() const override { return layout_; }
  Result<EpPeer> listen() override;
  size_t buffer_bytes(const MoeShape& shape, int max_num_tokens, int num_microbatches) const override;
  Status configure(const EpTopology& topology, const MoeShape& shape, int max_num_tokens,
                   int num_microbatches) override;
  DispatchHandle& handle(int microbatch) override;
  void dispatch_start(Lane& lane, DispatchHandle& handle, const Routed& routed) override;
  void dispatch_finish(Lane& lane, DispatchHandle& handle, ExpertBatch& batch) override;
  void combine_start(Lane& lane, DispatchHandle& handle, const ExpertBatch& batch) override;
  void combine_finish(Lane& lane, DispatchHandle& handle, Tensor out) override;
  void abort(Epoch epoch) override;
  Traffic traffic() const override { return traffic_; }
  Status status() const override;

 private:
  class Handle;

  GroupShape group_shape(const MoeShape& shape, int size, int max_num_tokens, int num_microbatches) const;
  Result<std::vector<LinkKind>> link_kinds(const EpTopology& topology) const;
  Status form(const EpTopology& topology, const GroupShape& shape);
  void leave();
  Status bind(Handle& h, const Routed& routed);
  void send_tcp_rows(Handle& h);
  void return_tcp_rows(Handle& h);
  bool wait(WaitWord& word, Handle& h, Half half);
  void fault(Handle& h, const Status& why);
  std::string missing(const Handle& h, Half half) const;
  Status sources(Handle& h, std::vector<RowSource>& out);
  Status locate_outputs(Handle& h);

  const Reach reach_;
  const ExpertLayout layout_;
  const TransportOptions options_;
  std::unique_ptr<PeerService> service_;

  mutable std::mutex mutex_;  // of the two below: abort() and status() come from any thread
  std::shared_ptr<Group> group_;
  Epoch aborted_below_;
  std::atomic<bool> cut_short_{false};  // a half could not do its work: only then does a lost peer matter

  // The steps' thread.
  std::vector<std::unique_ptr<Handle>> handles_;
  Traffic traffic_;
};

}  // namespace manta::ep
