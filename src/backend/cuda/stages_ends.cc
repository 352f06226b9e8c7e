#include <algorithm>

#include "backend/cuda/cuda_backend.h"

namespace manta::backend::cuda {

void CudaBackend::gather_inputs(Lane& lane, const StepView& view) {
  auto& l = static_cast<StageLane&>(lane);
  cuda::gather_inputs(buffers_[view.microbatch]->gather(view, slots_.arrays(), geometry_.block_size), l.stream);
  if (!plans_attention()) return;
  const StepBuffers& buffers = *buffers_[view.microbatch];
  plan_mla({.positions = view.positions.as<int32_t>(),
            .row_req = view.row_req.as<int32_t>(),
            .is_expanded = buffers.prefill().passes.empty() ? nullptr : buffers.is_expanded(),
            .num_rows = view.num_tokens,
            .num_planned = buffers.prefill().num_absorbed,
            .num_slots = std::max(1, num_multiprocessors_ / mla_blocks_per_item(shape_.num_attention_heads)),
            .max_extra_items = num_multiprocessors_,
            .items = l.scratch.mla_items,
            .row_pieces = l.scratch.mla_pieces},
           l.stream);
}

void CudaBackend::embed(Lane& lane, const StepView& view, const PackedWeight& embedding, Hidden& out) {
  embed_rows(static_cast<const __nv_bfloat16*>(matrix(embedding).data), view.token_ids.as<int32_t>(), view.num_tokens,
             shape_.hidden_size, static_cast<__nv_bfloat16*>(out.hidden.data), stream_of(lane));
  out.residual_valid = false;
}

// chosen row i = row rows[i] of normed; logits = head(chosen)
void CudaBackend::logits_of(StageLane& l, const __nv_bfloat16* normed, const int32_t* rows, int num_rows,
                            __nv_bfloat16* chosen, const PackedWeightPtr& head, const Tensor& logits) {
  embed_rows(normed, rows, num_rows, shape_.hidden_size, chosen, l.stream);
  linear(l, {.x = chosen, .stride = shape_.hidden_size}, {&matrix(head)}, num_rows,
         {logits.data, shape_.vocab_size, true});
}

void CudaBackend::head(Lane& lane, const StepView& view, const HeadWeights& w, Activations& act, Hidden& h) {
  auto& l = static_cast<StageLane&>(lane);
  auto* final_hidden = static_cast<__nv_bfloat16*>(act.final_hidden.data);
  add_norm(l, h, view.num_tokens, *w.norm, false, false, final_hidden);
  logits_of(l, final_hidden, view.logit_rows.as<int32_t>(), view.num_logit_rows, l.scratch.normed, w.head, act.logits);
}

void CudaBackend::sample(Lane& lane, const StepView& view, Activations& act) {
  const StepBuffers& buffers = *buffers_[view.microbatch];
  if (buffers.has_prompts()) prompt_logprobs(buffers.prompts(view, act.logits), stream_of(lane));
  sample_rows(buffers.sampling(view, slots_.arrays(), act.logits), stream_of(lane));
}

void CudaBackend::mtp_input(Lane& lane, const StepView& view, const PackedWeight& embedding, const MtpWeights& w,
                            Activations& act) {
  auto& l = static_cast<StageLane&>(lane);
  const int d = shape_.hidden_size;
  AddRmsNorm norm = {.hidden = static_cast<const __nv_bfloat16*>(matrix(embedding).data),
                     .hidden_stride = d,
                     .source_rows = view.next_token_ids.as<int32_t>(),  // rows without a successor get token 0
                     .gain = values(*w.enorm),
                     .eps = shape_.rms_norm_eps,
                     .num_rows = view.num_tokens,
                     .d = d,
                     .out = l.scratch.mtp_pair,
                     .out_stride = 2 * d};
  add_rms_norm(norm, l.stream);
  norm.hidden = static_cast<const __nv_bfloat16*>(act.final_hidden.data);
  norm.source_rows = nullptr;
  norm.gain = values(*w.hnorm);
  norm.out = l.scratch.mtp_pair + d;
  add_rms_norm(norm, l.stream);
  const MatrixWeight& eh_proj = matrix(w.eh_proj);
  Operand in = {l.scratch.mtp_pair, 2 * d};
  if (takes_fp8(eh_proj)) in = quantized(l, l.scratch.mtp_pair, 2 * d, view.num_tokens, 2 * d);
  linear(l, in, {&eh_proj}, view.num_tokens, {act.mtp.hidden.data, d});
  act.mtp.residual_valid = false;
}

// Draft logits replace the step's in act.logits: row i is sampling slice i.
void CudaBackend::mtp_draft(Lane& lane, const StepView& view, const PackedWeight& norm, const HeadWeights& w,
                            Activations& act) {
  auto& l = static_cast<StageLane&>(lane);
  add_norm(l, act.mtp, view.num_tokens, norm, false, false, l.scratch.normed);
  logits_of(l, l.scratch.normed, view.sample.draft_row.as<int32_t>(), view.sample.num_slices, l.scratch.mtp_pair,
            w.head, act.logits);
  draft_rows(buffers_[view.microbatch]->sampling(view, slots_.arrays(), act.logits), l.stream);
}

}  // namespace manta::backend::cuda
