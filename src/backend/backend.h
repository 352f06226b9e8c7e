// Seam 2: the model's stages, as each device does them. The model driver is written once against this; `ref` (plain
// loops, float32) is the specification and `cpu` and `cuda` must match it stage by stage.
//
// Rules of a stage: it allocates nothing, reads nothing back, and sees only buffers with stable addresses, so that a
// whole step can be captured and replayed. Host work happens in plan(). Faults surface from finish().
// Residual adds belong to the stage that consumes them (add + norm + quantise is one kernel): stages take the two
// streams `hidden` (the last block's output, not yet added) and `residual` (everything before it).
// Shape letters: T tokens (rows), R requests (slots with rows), S logit rows, D hidden_size, C kv_lora_rank, V vocab.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/model_shape.h"
#include "backend/weights.h"
#include "base/ids.h"
#include "base/lane.h"
#include "base/result.h"
#include "base/tensor.h"
#include "ep/expert_map.h"
#include "ep/expert_transport.h"
#include "kv/cache_geometry.h"
#include "sample/sampling_params.h"

namespace manta::backend {

struct Caps {
  std::string name;                   // "ref", "cpu", "cuda"
  std::string description;            // "cpu (2 threads, avx512_bf16)"
  DType cache_dtype = DType::kF32;    // of latent rows
  DType wire_dtype = DType::kF32;     // of rows handed to an ExpertTransport
  bool can_capture = false;           // run() with a GraphKey replays
  bool batch_invariant = true;        // a row's value does not depend on its neighbours
  bool makes_random_weights = false;  // pack() takes a WeightView::random
  int max_steps_in_flight = 1;        // steps that may be planned and run before the oldest is finished
  ep::ExpertLayout decode_layout = ep::ExpertLayout::kContiguous;
};

// Memory of a device of its own. Both 0: the backend works in the host's.
struct DeviceMemoryBytes {
  size_t free = 0;
  size_t total = 0;
};

// Bounds everything is sized for, once.
struct Limits {
  int max_num_seqs = 0;            // slots
  int max_num_tokens = 0;          // rows of a step
  int max_model_len = 0;           // tokens of a sequence
  int num_speculative_tokens = 0;  // k
  int num_microbatches = 1;        // in flight (2 with DBO)
};

// ---- host -> device, once a step -------------------------------------------------------------------------------

// A request taking a slot. Views are alive during plan() only.
struct SlotAdmission {
  SlotId slot = -1;
  std::span<const TokenId> tokens;  // prompt and earlier output
  int num_prompt_tokens = 0;
  std::span<const BlockId> blocks;  // replaces the slot's block table
  const sample::SamplingParams* sampling = nullptr;
};

// The rows of one slot in this step; the step's rows are the slices' in order.
struct RowSlice {
  SlotId slot = -1;
  int num_rows = 0;
  // >= 0: a prefill slice, tokens [first_position, first_position + num_rows) of the admitted tokens.
  // -1: a decode slice; positions and tokens are the device's (last sampled token, then its drafts).
  int first_position = -1;
  bool samples = false;          // prefill: the last row samples; decode: always, every row is verified
  bool prompt_logprobs = false;  // every row needs logits
  int max_seq_len = 0;           // after the step at most
  std::span<const BlockId> new_blocks;
  std::span<const uint32_t> token_bitmask;  // [ceil(V/32)] or empty; only on one-row decode and sampling prefill slices
};

struct StepInputs {
  std::span<const SlotId> released;
  std::span<const SlotAdmission> admitted;
  std::span<const RowSlice> slices;
  int padded_num_tokens = 0;  // rows of each microbatch; those beyond its slices are padding, touch no cache; 0 = none
  int num_microbatches = 1;
};

// ---- what stages see ---------------------------------------------------------------------------------------------

// How the logits of a microbatch become tokens. Slices that sample, in order of the step's slices.
// Row j of slice s verifies draft j: the slice's tokens are accepted up to and including the first row whose sampled
// token differs from the draft that row j + 1 was given. Afterwards the slot's length, last token and drafts are
// updated on the device.
struct SampleView {
  int num_slices = 0;      // slices that sample
  int max_rows = 1;        // 1 + k
  Tensor slots;            // [num_slices] i32
  Tensor first_logit_row;  // [num_slices] i32 into logits
  Tensor num_rows;         // [num_slices] i32
  Tensor token_bitmask;    // [num_slices, ceil(V/32)] u32 as i32; rows of slices without a grammar are all ones
  bool has_bitmask = false;
  // out
  Tensor tokens;        // [num_slices, 1 + k] i32, sampled by the target at each row
  Tensor num_accepted;  // [num_slices] i32, 1 .. num_rows
  Tensor draft_row;     // [num_slices] i32: row (of the step) of the last accepted token, where MTP drafts from
};

// One microbatch. Device memory at fixed addresses, filled by plan() and gather_inputs(). Counts are host bounds.
struct StepView {
  int microbatch = 0;
  int num_tokens = 0;      // rows incl. padding
  int num_reqs = 0;        // slices with rows here
  int num_logit_rows = 0;  // S
  int max_seq_len = 0;     // bound over the slices
  Tensor token_ids;        // [T] i32; padding rows hold 0
  Tensor next_token_ids;   // [T] i32; the following token where the prompt has it, -1 where it must be sampled
  Tensor positions;        // [T] i32; -1 on padding rows
  Tensor slots;            // [R] i32
  Tensor cu_rows;          // [R + 1] i32: rows of request r are [cu_rows[r], cu_rows[r+1])
  Tensor row_req;          // [T] i32: index r of the row's request, -1 on padding rows
  Tensor slot_mapping;     // [T] i64: cache row = block * block_size + offset; -1 = do not write
  Tensor block_tables;     // [max_num_seqs, max_blocks_per_seq] i32, by slot
  Tensor logit_rows;       // [S] i32: rows whose logits are computed
  SampleView sample;       // what becomes of those logits
};

// The two streams of a microbatch, [T, D] each, in the backend's activation dtype.
struct Hidden {
  Tensor hidden;
  Tensor residual;
  bool residual_valid = false;  // false right after embed: nothing to add yet. Stages set it
};

// One layer's cache: [num_blocks, block_size, C + rope] in the cache dtype.
struct KvLayer {
  Tensor rows;
  int memory_fd = -1;  // the file they are in, at its start, when BackendOptions::shareable_cache asked for one
  int gpu = -1;        // whose memory they are in; -1: host memory
};

// The buffers of one microbatch that stages pass along. Made once; contents are the backend's to lay out.
class Activations {
 public:
  virtual ~Activations() = default;
  Hidden hidden;        // the residual streams
  Hidden mtp;           // likewise for the MTP module
  Tensor final_hidden;  // [T, D] after the final norm (what MTP's hnorm takes)
  Tensor moe_input;     // [T, D] wire dtype: Routed::hidden points here
  Tensor topk_id;       // [T, top_k] i32
  Tensor topk_weight;   // [T, top_k] f32
  Tensor combined;      // [T, D] f32: combine_finish writes here
  Tensor shared_out;    // [T, D]: the shared expert's output
  Tensor logits;        // [S, V] f32
};

// What a step produced, on the host. Filled by finish().
struct StepOutputs {
  struct Slice {
    SlotId slot = -1;
    int num_rows = 0;
    std::vector<TokenId> tokens;  // accepted, [1 .. num_rows]; none for a slot that had already reached max_seq_len
    std::vector<sample::TokenLogprobs> logprobs;
    std::vector<sample::TokenLogprobs> prompt_logprobs;  // of tokens first_position + 1 .. while they are the prompt's
    std::string error;  // not empty: this request must end (its logits are not finite, no token is allowed); no tokens
  };
  std::vector<Slice> slices;
  std::vector<ep::LayerLoad> expert_load;
};

struct GraphKey {
  int padded_num_tokens = 0;
  int num_microbatches = 1;
  auto operator<=>(const GraphKey&) const = default;
};

using DriverFn = std::function<void(std::span<const StepView> microbatches)>;

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const Caps& caps() const = 0;

  // ---- once ------------------------------------------------------------------------------------------------------
  virtual Status init(const ModelShape& shape, const Limits& limits) = 0;
  // Copies what it keeps. The loader calls it from several threads at once: no shared state, no team of its own.
  virtual Result<PackedWeightPtr> pack(const WeightView& weight, WeightRole role) = 0;
  virtual DeviceMemoryBytes device_memory() const { return {}; }
  // Bytes that make_activations and init will have taken, for the ledger; callable after init.
  virtual size_t workspace_bytes() const = 0;
  virtual Status make_cache(const kv::CacheGeometry& geometry) = 0;  // owned here
  virtual KvLayer cache_layer(int layer) = 0;
  // Host bytes into the cache, behind the steps that were run and before those to come. `from` may go when it returns.
  virtual void write_cache(void* to, const void* from, size_t num_bytes) { std::memcpy(to, from, num_bytes); }
  virtual Result<std::unique_ptr<Activations>> make_activations() = 0;  // one per microbatch
  virtual Lane& lane(int microbatch) = 0;
  virtual Result<std::unique_ptr<ep::ExpertTransport>> make_transport(const ep::TransportOptions& options) = 0;

  // ---- each step -------------------------------------------------------------------------------------------------
  // Host side: applies released and admitted slots, appends blocks, fills the views' metadata. May come before the
  // steps in flight (caps().max_steps_in_flight) are finished: a decode row's token and position are the device's.
  virtual Status plan(const StepInputs& inputs, std::vector<StepView>& microbatches) = 0;
  // Runs the driver. With a key: captured the first time, replayed after. Null: eager. Returns when enqueued.
  virtual Status run(const GraphKey* key, std::span<const StepView> microbatches, const DriverFn& driver) = 0;
  // Waits for the oldest step in flight and reads its results back. Where several may be in flight, another thread may
  // call it than the one that plans and runs.
  virtual Result<StepOutputs> finish() = 0;

  // ---- stages, in the order the driver calls them -----------------------------------------------------------------
  // Tokens and positions of decode rows out of the slots' device state; slot_mapping of every row.
  virtual void gather_inputs(Lane&, const StepView&) = 0;
  virtual void embed(Lane&, const StepView&, const PackedWeight& embedding, Hidden& out) = 0;
  // add + norm, q/kv down and up, RoPE, cache write. Leaves q (absorbed) in scratch.
  virtual void attn_project(Lane&, const StepView&, const AttnWeights&, Hidden&, KvLayer&, Activations&) = 0;
  // reads the cache, o_proj; out: hidden.
  virtual void attn_attend(Lane&, const StepView&, const AttnWeights&, const KvLayer&, Activations&, Hidden&) = 0;
  // add + norm + MLP; out: hidden.
  virtual void dense_mlp(Lane&, const StepView&, const PackedWeight& norm, const MlpWeights&, Activations&,
                         Hidden&) = 0;
  // add + norm, scores, top-k, physical ids; out: moe_input, topk_id, topk_weight of `act`. Ties: lower logical id.
  // Which replica serves a token depends on its position only, so that no batch changes it.
  // `layer` is the layer's row in the map (MoE layers only, counted from 0), as in Routed and LayerLoad.
  virtual void route(Lane&, const StepView&, int layer, const PackedWeight& norm, const GateWeights&,
                     const ep::ExpertMap&, Activations& act, Hidden&) = 0;
  virtual void shared_expert(Lane&, const StepView&, const MlpWeights&, Activations& act) = 0;
  virtual void experts(Lane&, const ExpertWeights&, ep::ExpertBatch&) = 0;
  // hidden = combined + shared_out
  virtual void merge(Lane&, const StepView&, const Activations& act, Hidden&) = 0;
  // add + final norm of every row -> act.final_hidden; logits of view.logit_rows -> act.logits.
  virtual void head(Lane&, const StepView&, const HeadWeights&, Activations& act, Hidden&) = 0;
  // Penalties, masks, temperature, top-k/p, counter RNG; verification of drafts; the slots move on.
  virtual void sample(Lane&, const StepView&, Activations& act) = 0;

  // ---- MTP: drafts the next token; skipped when num_speculative_tokens is 0 ---------------------------------------
  // x = eh_proj([enorm(embed(next token)); hnorm(final_hidden)]) -> act.mtp. The next token is next_token_ids or what
  // sample() chose for that row.
  virtual void mtp_input(Lane&, const StepView&, const PackedWeight& embedding, const MtpWeights&,
                         Activations& act) = 0;
  // add + shared_head.norm, head at each sampling slice's last accepted row, the draft into the slot's state.
  virtual void mtp_draft(Lane&, const StepView&, const PackedWeight& norm, const HeadWeights&, Activations& act) = 0;
};

// fp8_activations: "none" or "dynamic". Throws nothing; a backend that cannot run here says why.
struct BackendOptions {
  int num_threads = 0;  // 0 = all cores this process may use
  std::string fp8_activations = "none";
  bool batch_invariant = true;
  bool shareable_cache = false;    // cache layers in memory files that other processes of this host may map
  std::string routing_simulation;  // "uniform_random" or "normal_routing" in place of the router; empty: the router
};
Result<std::unique_ptr<Backend>> make_backend(const std::string& name, const BackendOptions& options);

}  // namespace manta::backend
