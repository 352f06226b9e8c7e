#include "backend/host/sample_stage.h"

#include <fmt/format.h>

#include <algorithm>

namespace manta::backend::host {
namespace {

void reserve_entries(std::vector<sample::TokenLogprobs>& rows, size_t num_rows, int num_best) {
  rows.resize(num_rows);
  for (auto& row : rows) {
    row.token_ids.reserve(1 + num_best);
    row.logprobs.reserve(1 + num_best);
  }
}

// Prompt tokens that follow the rows of a slice: what its rows say something about.
int num_prompt_targets(int first_position, int num_rows, int num_prompt_tokens) {
  return std::clamp(num_prompt_tokens - 1 - first_position, 0, num_rows);
}

std::span<const uint32_t> bitmask_of(const SampleView& sample, int i) {
  if (!sample.has_bitmask) return {};
  const int64_t num_words = sample.token_bitmask.shape[1];
  return {reinterpret_cast<const uint32_t*>(sample.token_bitmask.as<int32_t>()) + i * num_words,
          static_cast<size_t>(num_words)};
}

}  // namespace

SampleStage::SampleStage(int vocab_size, int num_threads) : vocab_size_(vocab_size) {
  for (int i = 0; i < num_threads; ++i) samplers_.emplace_back(vocab_size);
}

std::span<const float> SampleStage::row(const Tensor& logits, int64_t i) const {
  return {logits.as<float>() + i * logits.stride[0], static_cast<size_t>(vocab_size_)};
}

void SampleStage::begin(const StepInputs& inputs, const SlotTable& slots) {
  outcomes_.clear();
  outcomes_.resize(inputs.slices.size());
  for (size_t i = 0; i < inputs.slices.size(); ++i) {
    const RowSlice& s = inputs.slices[i];
    const Slot& slot = slots.slot(s.slot);
    Outcome& o = outcomes_[i];
    o.pending = s.first_position < 0 || s.samples;
    o.reports = o.pending || s.prompt_logprobs;
    o.first_position = s.first_position;
    o.slice.slot = s.slot;
    o.slice.num_rows = s.num_rows;
    if (o.pending) {
      const int num_rows = s.first_position < 0 ? s.num_rows : 1;
      o.slice.tokens.reserve(num_rows);
      if (slot.sampling.num_logprobs >= 0) reserve_entries(o.slice.logprobs, num_rows, slot.sampling.num_logprobs);
    }
    if (s.prompt_logprobs) {
      o.num_prompt_logprobs = std::max(slot.sampling.num_prompt_logprobs, 0);
      reserve_entries(o.slice.prompt_logprobs, num_prompt_targets(s.first_position, s.num_rows, slot.num_prompt_tokens),
                      o.num_prompt_logprobs);
    }
  }
}

void SampleStage::run(ThreadTeam& team, const StepView& view, std::span<const Piece> pieces, const Tensor& logits,
                      SlotTable& slots) {
  team.parallel_for(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t r = begin; r < end; ++r) {
      const Piece& piece = pieces[r];
      Slot& slot = slots.slot(piece.slot);
      if (piece.prompt_logprobs) prompt_rows(view, piece, logits, slot, thread);
      if (piece.samples) sample_slice(view, piece, logits, slot, thread);
    }
  });
}

void SampleStage::prompt_rows(const StepView& view, const Piece& piece, const Tensor& logits, const Slot& slot,
                              int thread) {
  Outcome& o = outcomes_[piece.slice];
  const int num_rows = num_prompt_targets(piece.first_position, piece.num_rows, slot.num_prompt_tokens);
  for (int j = 0; j < num_rows; ++j) {
    const int position = piece.first_position + j;
    samplers_[thread].logprobs(row(logits, piece.first_logit_row + j), slot.tokens[position + 1], o.num_prompt_logprobs,
                               o.slice.prompt_logprobs[position - o.first_position]);
  }
}

void SampleStage::sample_slice(const StepView& view, const Piece& piece, const Tensor& logits, Slot& slot, int thread) {
  const SampleView& sample = view.sample;
  const int i = piece.sample_index;
  const int first = sample.first_logit_row.as<int32_t>()[i];
  const int num_rows = sample.num_rows.as<int32_t>()[i];
  const int32_t* step_rows = view.logit_rows.as<int32_t>() + first;
  int32_t* tokens = sample.tokens.as<int32_t>() + i * sample.tokens.stride[0];
  std::fill_n(tokens, sample.max_rows, -1);
  Outcome& o = outcomes_[piece.slice];
  o.pending = false;
  int accepted = 0;
  while (accepted < num_rows && view.positions.as<int32_t>()[step_rows[accepted]] >= 0) {
    const TokenId token = sample_row(row(logits, first + accepted), accepted == 0 ? bitmask_of(sample, i) : Bitmask(),
                                     slot, o.slice, thread);
    if (token < 0) break;
    const int step_row = step_rows[accepted];
    view.next_token_ids.as<int32_t>()[step_row] = token;
    tokens[accepted++] = token;
    // Its successor row was computed with the draft as its token: right if that is what was sampled.
    if (accepted < num_rows && view.token_ids.as<int32_t>()[step_row + 1] != token) break;
  }
  if (!o.slice.error.empty()) o.slice.tokens.clear();
  o.slice.logprobs.resize(std::min(o.slice.logprobs.size(), o.slice.tokens.size()));
  slot.drafts.clear();
  sample.num_accepted.as<int32_t>()[i] = accepted;
  sample.draft_row.as<int32_t>()[i] = step_rows[std::max(accepted - 1, 0)];
}

// The slot's next token, appended to the slot and to `out` with its log probabilities; -1 and out.error on a fault.
TokenId SampleStage::sample_row(std::span<const float> logits, Bitmask bitmask, Slot& slot, StepOutputs::Slice& out,
                                int thread) {
  sample::RowSampler& sampler = samplers_[thread];
  const auto choice = sampler.choose({logits, &slot.sampling, slot.tokens, slot.num_prompt_tokens, bitmask});
  if (choice.fault != sample::RowFault::kNone) {
    out.error = fmt::format("token {} of the sequence: {}", slot.slot_len(), to_string(choice.fault));
    return -1;
  }
  if (slot.sampling.num_logprobs >= 0) {
    sampler.logprobs(logits, choice.token, slot.sampling.num_logprobs, out.logprobs[out.tokens.size()]);
  }
  out.tokens.push_back(choice.token);
  slot.tokens.push_back(choice.token);
  return choice.token;
}

Result<std::vector<StepOutputs::Slice>> SampleStage::take() {
  std::vector<StepOutputs::Slice> out;
  for (Outcome& o : outcomes_) {
    if (o.pending) {
      return error(
          ErrorCode::kInternal,
          fmt::format("slot {} should have sampled, but sample() did not run for its microbatch", o.slice.slot));
    }
    if (o.reports) out.push_back(std::move(o.slice));
  }
  outcomes_.clear();
  return out;
}

void SampleStage::draft(ThreadTeam& team, const StepView& view, const Tensor& logits, SlotTable& slots) {
  const SampleView& sample = view.sample;
  team.parallel_for(sample.num_slices, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t i = begin; i < end; ++i) {
      if (sample.num_accepted.as<int32_t>()[i] == 0) continue;
      Slot& slot = slots.slot(sample.slots.as<int32_t>()[i]);
      const auto choice =
          samplers_[thread].choose({row(logits, i), &slot.sampling, slot.tokens, slot.num_prompt_tokens, {}});
      if (choice.fault == sample::RowFault::kNone) slot.drafts.push_back(choice.token);
    }
  });
}

}  // namespace manta::backend::host
