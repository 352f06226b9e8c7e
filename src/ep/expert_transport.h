// The sideways seam: takes routed rows to the ranks that hold their experts (dispatch) and brings the weighted sum of
// the experts' outputs back (combine). Fabric and device vary independently of the model, so it stands beside it.
//
// Each half is a start and a finish, so that another microbatch's compute can run in between. In CUDA's high-throughput
// mode `start` is the whole call on the communication stream and `finish` waits for its event; in low-latency mode
// `start` posts the sends and `finish` receives. A new epoch on CUDA means a new communicator, group and recapture.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/ids.h"
#include "base/lane.h"
#include "base/result.h"
#include "base/tensor.h"
#include "ep/expert_map.h"

namespace manta::ep {

// contiguous (high-throughput): rows of local expert e stand at [offset[e], offset[e+1]) of one matrix.
// masked (low-latency): expert e has its own [max_rows_per_expert, D] plane, of which num_rows[e] rows are valid.
enum class ExpertLayout { kContiguous, kMasked };

struct MoeShape {
  int hidden_size = 0;
  int num_experts_per_tok = 0;
  int num_physical_experts = 0;
  int num_local_experts = 0;
  // The one stated dtype of rows on the wire, out and back. Every transport, loopback too, rounds to it, so that a
  // token's value does not depend on where its experts live.
  DType wire_dtype = DType::kBF16;
};

// What the router decided for the T rows of one microbatch in one layer. Views; alive until combine_finish.
struct Routed {
  int layer = 0;
  Tensor hidden;       // [T, D] wire dtype: normed inputs of the experts
  Tensor scales;       // [T, D/128] f32 when the wire is FP8, else empty
  Tensor topk_id;      // [T, top_k] i32 physical ids; -1 on padding rows: not sent, not counted, combined to 0
  Tensor topk_weight;  // [T, top_k] f32
  bool more = false;   // this rank has further rows of the microbatch for another round
};

// The rows this rank's experts work on, and where they put their outputs. Buffers belong to the transport.
struct ExpertBatch {
  ExpertLayout layout = ExpertLayout::kContiguous;
  Tensor hidden;       // contiguous: [max_rows, D]; masked: [num_local_experts, max_rows_per_expert, D]; wire dtype
  Tensor scales;       // as hidden, when the wire is FP8
  Tensor row_offsets;  // contiguous: [num_local_experts + 1] i32, device memory
  Tensor num_rows;     // masked: [num_local_experts] i32, device memory
  int max_rows = 0;    // host upper bound of valid rows (contiguous: in all; masked: per expert); no host counts needed
  Tensor output;       // shape of hidden, wire dtype: what the experts must fill for every valid row
  bool more = false;   // some rank has further rows: after combine_finish all ranks do another round, from
                       // dispatch_start on, with their next rows or none
};

struct TransportOptions {
  // "loopback": all experts here. "shm": ranks on one host. "tcp": anywhere. "auto": shm to the ranks on the same host,
  // tcp to the others.
  std::string kind = "loopback";
  std::optional<ExpertLayout> layout;  // none: the backend's choice
  // Network interface that tcp listens on, or several with commas of which the first that exists is taken; empty: the
  // loopback one.
  std::string interface;
  std::chrono::milliseconds connect_deadline{60000};  // of configure(), for the last peer to come
  // Of one half, for the last peer's rows. Long: a rank that is stuck is named and put out by the coordinator first.
  std::chrono::milliseconds wait_deadline{600000};
  std::chrono::microseconds delay{0};  // rows stay invisible this long after their start; for tests of overlap
};

// One microbatch's dispatch and combine in flight. Made by configure(), reused by every layer and step.
class DispatchHandle {
 public:
  virtual ~DispatchHandle() = default;
};

class ExpertTransport {
 public:
  virtual ~ExpertTransport() = default;
  virtual ExpertLayout layout() const = 0;

  // Starts to listen for peers, once; what the rank announces so that others can configure() with it (its rank is left
  // for the caller to fill in). Loopback, which has no peers: an empty address.
  virtual Result<EpPeer> listen() { return EpPeer{}; }

  // What configure() will take from the device for this shape, for the memory ledger; callable before configure().
  virtual size_t buffer_bytes(const MoeShape& shape, int max_num_tokens, int num_microbatches) const = 0;

  // Collective over the group: connects, allocates, makes one handle per microbatch in flight. Again for a new epoch.
  // Fails (naming the rank) when a peer does not come by the deadline the transport was made with. max_num_tokens: rows
  // of one rank in one round; a microbatch with more goes in several (Routed::more), and buffers are sized by a round.
  virtual Status configure(const EpTopology& topology, const MoeShape& shape, int max_num_tokens,
                           int num_microbatches) = 0;
  virtual DispatchHandle& handle(int microbatch) = 0;

  // Binds the handle to a layer's routing and begins to send. `routed` must stay valid until combine_finish.
  virtual void dispatch_start(Lane& lane, DispatchHandle& handle, const Routed& routed) = 0;
  virtual void dispatch_finish(Lane& lane, DispatchHandle& handle, ExpertBatch& batch) = 0;
  virtual void combine_start(Lane& lane, DispatchHandle& handle, const ExpertBatch& batch) = 0;
  // out [T, D] f32: for each row the sum over k of topk_weight[k] x output of its k-th expert, added in the order of k
  // in float32, wherever the experts live (never summed by rank first). Rows without experts become 0.
  virtual void combine_finish(Lane& lane, DispatchHandle& handle, Tensor out) = 0;

  // Ends every wait of epochs below `epoch`, from any thread; the halves return at once and status() says why.
  virtual void abort(Epoch epoch) = 0;
  // Since it was made; the thread that runs steps.
  virtual Traffic traffic() const { return {}; }
  // The first fault since configure(): which rank, which layer, which half. Checked by the executor after a step.
  virtual Status status() const = 0;
};

// By kind; the layout must be given. Fails on an unknown kind or interface, naming those there are.
Result<std::unique_ptr<ExpertTransport>> make_transport(const TransportOptions& options);

// All experts on this rank. Rounds to the wire dtype as the real ones do.
std::unique_ptr<ExpertTransport> make_loopback_transport(ExpertLayout layout);
// Rows become visible to the finishes `delay` after this rank's starts, whatever is under it. The wait takes no CPU, so
// what another microbatch computes meanwhile is hidden time.
std::unique_ptr<ExpertTransport> make_delay_transport(std::unique_ptr<ExpertTransport> inner,
                                                      std::chrono::microseconds delay);

}  // namespace manta::ep
