#include "backend/cuda/step_buffers.h"

#include <algorithm>

namespace manta::backend::cuda {
namespace {

int64_t words(const ModelShape& s) {
  return (s.vocab_size + 31) / 32;
}

int64_t logprob_rows(const Limits& l) {
  return int64_t{l.max_num_seqs} * (1 + l.num_speculative_tokens);
}

}  // namespace

size_t StepBuffers::num_bytes(const ModelShape& s, const Limits& l, int max_prefill_rows) {
  const PrefillBounds bounds = prefill_bounds(l.max_num_tokens, l.max_model_len, max_prefill_rows);
  const size_t prefill = bounds.segments * sizeof(KvSegment) + bounds.items * sizeof(PrefillItem);
  const size_t tokens = l.max_num_tokens, seqs = l.max_num_seqs;
  const size_t per_row = (2 * (1 + kMaxLogprobs) + 1) * sizeof(int32_t);
  return tokens * 9 * sizeof(int32_t) + seqs * (words(s) + 2 * s.vocab_size + 13 + 1 + l.num_speculative_tokens) * 4 +
         (logprob_rows(l) + tokens) * per_row + prefill;
}

Status StepBuffers::init(const ModelShape& shape, const Limits& limits, const Tensor& block_tables,
                         int max_prefill_rows) {
  shape_ = shape;
  limits_ = limits;
  max_prefill_rows_ = max_prefill_rows;
  const int64_t tokens = limits.max_num_tokens, seqs = limits.max_num_seqs;
  const int64_t max_rows = 1 + limits.num_speculative_tokens;
  StepView& v = full_;
  const auto take = [this](Tensor& out, DType dtype, std::initializer_list<int64_t> dims) -> Status {
    MANTA_ASSIGN(out, memory_.allocate("step metadata", dtype, dims));
    return {};
  };
  MANTA_TRY(take(v.token_ids, DType::kI32, {tokens}));
  MANTA_TRY(take(v.next_token_ids, DType::kI32, {tokens}));
  MANTA_TRY(take(v.positions, DType::kI32, {tokens}));
  MANTA_TRY(take(v.slots, DType::kI32, {seqs}));
  MANTA_TRY(take(v.cu_rows, DType::kI32, {seqs + 1}));
  MANTA_TRY(take(v.row_req, DType::kI32, {tokens}));
  MANTA_TRY(take(v.slot_mapping, DType::kI64, {tokens}));
  MANTA_TRY(take(v.logit_rows, DType::kI32, {std::max(tokens, seqs)}));
  MANTA_TRY(take(v.sample.slots, DType::kI32, {seqs}));
  MANTA_TRY(take(v.sample.first_logit_row, DType::kI32, {seqs}));
  MANTA_TRY(take(v.sample.num_rows, DType::kI32, {seqs}));
  MANTA_TRY(take(v.sample.token_bitmask, DType::kI32, {seqs, words(shape)}));
  MANTA_TRY(take(v.sample.tokens, DType::kI32, {seqs, max_rows}));
  MANTA_TRY(take(v.sample.num_accepted, DType::kI32, {seqs}));
  MANTA_TRY(take(v.sample.draft_row, DType::kI32, {seqs}));
  v.sample.max_rows = static_cast<int>(max_rows);
  v.block_tables = block_tables;
  return init_sampling(shape, limits);
}

Status StepBuffers::init_sampling(const ModelShape& shape, const Limits& limits) {
  const int64_t tokens = limits.max_num_tokens, seqs = limits.max_num_seqs;
  const auto take = [this](auto*& out, int64_t n) -> Status {
    MANTA_ASSIGN(void* data, memory_.allocate_bytes("sampling", n * sizeof(*out)));
    out = static_cast<std::remove_reference_t<decltype(out)>>(data);
    return {};
  };
  MANTA_TRY(take(first_row_, seqs));
  MANTA_TRY(take(first_position_, seqs));
  MANTA_TRY(take(max_seq_len_, seqs));
  MANTA_TRY(take(num_slices_, 1));
  MANTA_TRY(take(has_bitmask_, seqs));
  MANTA_TRY(take(faults_, 2 * seqs));
  const PrefillBounds bounds = prefill_bounds(limits.max_num_tokens, limits.max_model_len, max_prefill_rows_);
  MANTA_TRY(take(segments_, bounds.segments));
  MANTA_TRY(take(items_, bounds.items));
  MANTA_TRY(take(is_expanded_, seqs));
  MANTA_TRY(take(targets_, tokens));
  MANTA_TRY(take(num_best_, tokens));
  for (auto& [rows, n] : {std::pair{&sampled_, logprob_rows(limits)}, std::pair{&prompt_results_, tokens}}) {
    MANTA_TRY(take(rows->ids, n * (1 + kMaxLogprobs)));
    MANTA_TRY(take(rows->values, n * (1 + kMaxLogprobs)));
    MANTA_TRY(take(rows->ranks, n));
  }
  MANTA_TRY(take(scratch_, seqs * shape.vocab_size));
  return take(marks_, seqs * shape.vocab_size);
}

StepView StepBuffers::put(const StepInputs& inputs, const StepView& host_view, std::span<const host::Piece> pieces,
                          const host::SlotTable& slots, Upload& upload) {
  StepView v = full_;
  v.microbatch = host_view.microbatch;
  v.num_tokens = host_view.num_tokens;
  v.num_reqs = host_view.num_reqs;
  v.num_logit_rows = host_view.num_logit_rows;
  v.max_seq_len = host_view.max_seq_len;
  v.sample.num_slices = host_view.sample.num_slices;
  v.sample.has_bitmask = host_view.sample.has_bitmask;
  const auto copy = [&upload](const Tensor& to, const Tensor& from, int64_t n) {
    upload.put(to.as<int32_t>(), from.as<int32_t>(), n);
  };
  for (Tensor StepView::*t :
       {&StepView::token_ids, &StepView::next_token_ids, &StepView::positions, &StepView::row_req}) {
    copy(v.*t, host_view.*t, v.num_tokens);
  }
  upload.put(v.slot_mapping.as<int64_t>(), host_view.slot_mapping.as<int64_t>(), v.num_tokens);
  copy(v.slots, host_view.slots, v.num_reqs);
  copy(v.cu_rows, host_view.cu_rows, v.num_reqs + 1);
  std::vector<int32_t> logit_rows(std::max(v.num_logit_rows, v.num_tokens), 0);  // of a captured step: row 0 for none
  std::copy_n(host_view.logit_rows.as<int32_t>(), v.num_logit_rows, logit_rows.begin());
  upload.put(v.logit_rows.as<int32_t>(), logit_rows.data(), std::min<size_t>(logit_rows.size(), v.logit_rows.shape[0]));
  for (Tensor SampleView::*t : {&SampleView::slots, &SampleView::first_logit_row, &SampleView::num_rows}) {
    copy(v.sample.*t, host_view.sample.*t, v.sample.num_slices);
  }
  upload.put(num_slices_, int32_t{v.sample.num_slices});
  put_prefill(pieces, v.num_tokens, upload);

  std::vector<int32_t> first_row, first_position, max_seq_len, has_bitmask(v.sample.num_slices, 0);
  std::vector<int32_t> targets, num_best(v.num_logit_rows, 0);
  targets.assign(v.num_logit_rows, -1);
  has_prompts_ = false;
  for (const host::Piece& p : pieces) {
    first_row.push_back(p.first_row);
    first_position.push_back(p.first_position);
    max_seq_len.push_back(p.max_seq_len);
    const auto bitmask = inputs.slices[p.slice].token_bitmask;
    if (p.samples && !bitmask.empty()) {
      has_bitmask[p.sample_index] = 1;
      upload.put(v.sample.token_bitmask.as<uint32_t>() + p.sample_index * words(shape_), bitmask.data(),
                 bitmask.size());
    }
    if (!p.prompt_logprobs) continue;
    const host::Slot& slot = slots.slot(p.slot);
    for (int j = 0; j < p.num_rows && p.first_position + j + 1 < slot.num_prompt_tokens; ++j) {
      has_prompts_ = true;
      targets[p.first_logit_row + j] = slot.tokens[p.first_position + j + 1];
      num_best[p.first_logit_row + j] = std::max(slot.sampling.num_prompt_logprobs, 0);
    }
  }
  upload.put(first_row_, first_row.data(), first_row.size());
  upload.put(first_position_, first_position.data(), first_position.size());
  upload.put(max_seq_len_, max_seq_len.data(), max_seq_len.size());
  upload.put(has_bitmask_, has_bitmask.data(), has_bitmask.size());
  if (has_prompts_) {
    upload.put(targets_, targets.data(), targets.size());
    upload.put(num_best_, num_best.data(), num_best.size());
  }
  return v;
}

void StepBuffers::put_prefill(std::span<const host::Piece> pieces, int num_rows, Upload& upload) {
  prefill_ = plan_prefill(pieces, num_rows, max_prefill_rows_);
  if (prefill_.passes.empty()) return;
  upload.put(segments_, prefill_.segments.data(), prefill_.segments.size());
  upload.put(items_, prefill_.items.data(), prefill_.items.size());
  upload.put(is_expanded_, prefill_.is_expanded.data(), prefill_.is_expanded.size());
}

StepView StepBuffers::bounds(const StepView& view) const {
  StepView v = view;
  v.num_reqs = v.sample.num_slices = std::min(view.num_tokens, limits_.max_num_seqs);
  v.num_logit_rows = view.num_tokens;
  v.max_seq_len = limits_.max_model_len;
  return v;
}

GatherInputs StepBuffers::gather(const StepView& v, const SlotArrays& slots, int block_size) const {
  GatherInputs g;
  g.num_rows = v.num_tokens;
  g.block_size = block_size;
  g.slots = slots;
  g.row_req = v.row_req.as<int32_t>();
  g.req_slot = v.slots.as<int32_t>();
  g.req_first_row = first_row_;
  g.req_first_position = first_position_;
  g.req_max_seq_len = max_seq_len_;
  g.token_ids = v.token_ids.as<int32_t>();
  g.positions = v.positions.as<int32_t>();
  g.slot_mapping = v.slot_mapping.as<int64_t>();
  return g;
}

SampleRows StepBuffers::sampling(const StepView& v, const SlotArrays& slots, const Tensor& logits) const {
  SampleRows s;
  s.slots = slots;
  s.vocab_size = shape_.vocab_size;
  s.max_slices = v.sample.num_slices;
  s.num_slices = num_slices_;
  s.logits = logits.as<float>();
  s.slice_slot = v.sample.slots.as<int32_t>();
  s.first_logit_row = v.sample.first_logit_row.as<int32_t>();
  s.num_rows = v.sample.num_rows.as<int32_t>();
  s.has_bitmask = has_bitmask_;
  s.bitmask = v.sample.token_bitmask.as<uint32_t>();
  s.logit_rows = v.logit_rows.as<int32_t>();
  s.positions = v.positions.as<int32_t>();
  s.token_ids = v.token_ids.as<int32_t>();
  s.next_token_ids = v.next_token_ids.as<int32_t>();
  s.max_rows = v.sample.max_rows;
  s.scratch = scratch_;
  s.marks = marks_;
  s.tokens = v.sample.tokens.as<int32_t>();
  s.num_accepted = v.sample.num_accepted.as<int32_t>();
  s.draft_row = v.sample.draft_row.as<int32_t>();
  s.fault = faults_;
  s.fault_length = faults_ + limits_.max_num_seqs;
  s.logprobs = sampled_;
  return s;
}

PromptLogprobs StepBuffers::prompts(const StepView& v, const Tensor& logits) const {
  return {logits.as<float>(), shape_.vocab_size, v.num_logit_rows, targets_, num_best_, prompt_results_};
}

}  // namespace manta::backend::cuda
