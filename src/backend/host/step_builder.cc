#include "backend/host/step_builder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace manta::backend::host {
namespace {

int total_rows(const StepInputs& inputs) {
  int rows = 0;
  for (const RowSlice& s : inputs.slices) rows += s.num_rows;
  return rows;
}

// A microbatch may begin at `row`: not inside a decode slice.
bool may_cut(const StepInputs& inputs, int row) {
  int first = 0;
  for (const RowSlice& s : inputs.slices) {
    if (row <= first) return true;
    if (row < first + s.num_rows) return s.first_position >= 0;
    first += s.num_rows;
  }
  return true;
}

}  // namespace

Result<StepBuilder> StepBuilder::make(const ModelShape& shape, const Limits& limits) {
  StepBuilder builder(shape, limits);
  for (int i = 0; i < limits.num_microbatches; ++i) {
    MANTA_ASSIGN(Buffers buffers, builder.allocate());
    builder.buffers_.push_back(std::move(buffers));
  }
  builder.memory_.fill(0);
  return builder;
}

Result<StepBuilder::Buffers> StepBuilder::allocate() {
  const int64_t tokens = limits_.max_num_tokens, seqs = limits_.max_num_seqs;
  const int64_t max_rows = 1 + limits_.num_speculative_tokens;
  Buffers b;
  StepView& v = b.full;
  const auto take = [this](Tensor& out, DType dtype, std::initializer_list<int64_t> shape) -> Status {
    MANTA_ASSIGN(out, memory_.allocate("step metadata", dtype, shape));
    return {};
  };
  MANTA_TRY(take(v.token_ids, DType::kI32, {tokens}));
  MANTA_TRY(take(v.next_token_ids, DType::kI32, {tokens}));
  MANTA_TRY(take(v.positions, DType::kI32, {tokens}));
  MANTA_TRY(take(v.slots, DType::kI32, {seqs}));
  MANTA_TRY(take(v.cu_rows, DType::kI32, {seqs + 1}));
  MANTA_TRY(take(v.row_req, DType::kI32, {tokens}));
  MANTA_TRY(take(v.slot_mapping, DType::kI64, {tokens}));
  MANTA_TRY(take(v.logit_rows, DType::kI32, {tokens}));
  MANTA_TRY(take(v.sample.slots, DType::kI32, {seqs}));
  MANTA_TRY(take(v.sample.first_logit_row, DType::kI32, {seqs}));
  MANTA_TRY(take(v.sample.num_rows, DType::kI32, {seqs}));
  MANTA_TRY(take(v.sample.token_bitmask, DType::kI32, {seqs, (vocab_size_ + 31) / 32}));
  MANTA_TRY(take(v.sample.tokens, DType::kI32, {seqs, max_rows}));
  MANTA_TRY(take(v.sample.num_accepted, DType::kI32, {seqs}));
  MANTA_TRY(take(v.sample.draft_row, DType::kI32, {seqs}));
  v.sample.max_rows = static_cast<int>(max_rows);
  b.pieces.reserve(seqs);
  return b;
}

// The first rows of the microbatches and the end: near equal shares, each within the padding, no decode slice cut.
Result<std::vector<int>> StepBuilder::cut(const StepInputs& inputs) const {
  const int n = inputs.num_microbatches, num_rows = total_rows(inputs);
  const int most = inputs.padded_num_tokens > 0 ? inputs.padded_num_tokens : limits_.max_num_tokens;
  std::vector<int> begins = {0};
  for (int i = 1; i < n; ++i) {
    const int low = std::max<int64_t>(begins.back(), num_rows - int64_t{most} * (n - i));
    const int high = std::min<int64_t>(num_rows, int64_t{begins.back()} + most);
    const int target = std::clamp(static_cast<int>(int64_t{num_rows} * i / n), low, std::max(low, high));
    int found = -1;
    for (int d = 0; found < 0 && (target - d >= low || target + d <= high); ++d) {
      if (target - d >= low && may_cut(inputs, target - d))
        found = target - d;
      else if (target + d <= high && may_cut(inputs, target + d))
        found = target + d;
    }
    if (found < 0) {
      return error(ErrorCode::kInvalidArgument,
                   fmt::format("{} rows do not split into {} microbatches of at most {} rows without cutting a decode "
                               "slice: run the step unsplit",
                               num_rows, n, most));
    }
    begins.push_back(found);
  }
  begins.push_back(num_rows);
  return begins;
}

Status StepBuilder::check(const StepInputs& inputs) const {
  const int n = inputs.num_microbatches, padded = inputs.padded_num_tokens;
  if (n < 1 || n > limits_.num_microbatches) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("{} microbatches: must be in [1, {}]", n, limits_.num_microbatches));
  }
  const int num_rows = total_rows(inputs);
  if (num_rows > limits_.max_num_tokens) {
    return error(ErrorCode::kInvalidArgument, fmt::format("a step of {} rows: at most {} (max_num_batched_tokens)",
                                                          num_rows, limits_.max_num_tokens));
  }
  if (padded < 0 || padded > limits_.max_num_tokens || (padded > 0 && int64_t{padded} * n < num_rows)) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("padded_num_tokens {} for {} rows in {} microbatches: must be 0 or in [{}, {}]", padded,
                             num_rows, n, (num_rows + n - 1) / n, limits_.max_num_tokens));
  }
  auto begins = cut(inputs);
  return begins.ok() ? Status{} : Status{begins.error()};
}

void StepBuilder::collect_pieces(const StepInputs& inputs, int begin, int end, std::vector<Piece>& pieces) {
  pieces.clear();
  int first = 0;  // row of the step where the slice begins
  for (size_t i = 0; i < inputs.slices.size(); ++i) {
    const RowSlice& s = inputs.slices[i];
    const int from = std::max(first, begin), to = std::min(first + s.num_rows, end);
    if (from < to) {
      Piece p;
      p.slice = static_cast<int>(i);
      p.slot = s.slot;
      p.first_row = from - begin;
      p.num_rows = to - from;
      p.first_position = s.first_position < 0 ? -1 : s.first_position + (from - first);
      p.max_seq_len = s.first_position < 0 ? s.max_seq_len : p.first_position + p.num_rows;
      p.samples = (s.first_position < 0 || s.samples) && to == first + s.num_rows;
      p.prompt_logprobs = s.prompt_logprobs;
      pieces.push_back(p);
    }
    first += s.num_rows;
  }
}

void StepBuilder::build(const StepInputs& inputs, const SlotTable& slots, std::vector<StepView>& microbatches) {
  const auto begins = cut(inputs);
  microbatches.resize(inputs.num_microbatches);
  for (int i = 0; i < inputs.num_microbatches; ++i) {
    Buffers& b = buffers_[i];
    StepView& view = microbatches[i];
    view = b.full;
    view.microbatch = i;
    collect_pieces(inputs, (*begins)[i], (*begins)[i + 1], b.pieces);
    const int num_rows = (*begins)[i + 1] - (*begins)[i];
    view.num_tokens = std::max(num_rows, inputs.padded_num_tokens);
    view.num_reqs = static_cast<int>(b.pieces.size());
    view.block_tables = slots.block_tables();
    fill_samples(inputs, b, view);
    fill_rows(slots, b, view);
  }
}

void StepBuilder::fill_samples(const StepInputs& inputs, Buffers& b, StepView& view) const {
  SampleView& sample = view.sample;
  int32_t* logit_rows = view.logit_rows.as<int32_t>();
  const size_t num_words = (vocab_size_ + 31) / 32;
  for (const Piece& p : b.pieces) {
    sample.has_bitmask |= p.samples && !inputs.slices[p.slice].token_bitmask.empty();
  }
  for (Piece& p : b.pieces) {
    const bool all_rows = p.first_position < 0 || p.prompt_logprobs;
    p.num_logit_rows = all_rows ? p.num_rows : (p.samples ? 1 : 0);
    p.first_logit_row = view.num_logit_rows;
    for (int j = 0; j < p.num_logit_rows; ++j) {
      logit_rows[view.num_logit_rows++] = p.first_row + p.num_rows - p.num_logit_rows + j;
    }
    if (!p.samples) continue;
    const int i = p.sample_index = sample.num_slices++;
    const int num_rows = p.first_position < 0 ? p.num_rows : 1;
    sample.slots.as<int32_t>()[i] = p.slot;
    sample.first_logit_row.as<int32_t>()[i] = view.num_logit_rows - num_rows;
    sample.num_rows.as<int32_t>()[i] = num_rows;
    if (!sample.has_bitmask) continue;
    int32_t* words = sample.token_bitmask.as<int32_t>() + i * num_words;
    const auto bitmask = inputs.slices[p.slice].token_bitmask;
    if (bitmask.empty()) {
      std::fill_n(words, num_words, -1);
    } else {
      std::memcpy(words, bitmask.data(), num_words * sizeof(int32_t));
    }
  }
}

void StepBuilder::fill_rows(const SlotTable& slots, const Buffers& b, StepView& view) const {
  int32_t* token_ids = view.token_ids.as<int32_t>();
  int32_t* next_token_ids = view.next_token_ids.as<int32_t>();
  int32_t* positions = view.positions.as<int32_t>();
  int32_t* row_req = view.row_req.as<int32_t>();
  std::fill_n(token_ids, view.num_tokens, 0);
  std::fill_n(next_token_ids, view.num_tokens, -1);
  std::fill_n(positions, view.num_tokens, -1);
  std::fill_n(row_req, view.num_tokens, -1);
  std::fill_n(view.slot_mapping.as<int64_t>(), view.num_tokens, -1);
  view.cu_rows.as<int32_t>()[0] = 0;
  for (int r = 0; r < view.num_reqs; ++r) {
    const Piece& p = b.pieces[r];
    view.slots.as<int32_t>()[r] = p.slot;
    view.cu_rows.as<int32_t>()[r + 1] = p.first_row + p.num_rows;
    view.max_seq_len = std::max(view.max_seq_len, p.max_seq_len);
    std::fill_n(row_req + p.first_row, p.num_rows, r);
    if (p.first_position < 0) continue;
    const auto& tokens = slots.slot(p.slot).tokens;
    for (int j = 0; j < p.num_rows; ++j) {
      const int row = p.first_row + j, position = p.first_position + j;
      token_ids[row] = tokens[position];
      positions[row] = position;
      if (position + 1 < static_cast<int>(tokens.size())) next_token_ids[row] = tokens[position + 1];
    }
  }
}

void StepBuilder::gather(const StepView& view, const SlotTable& slots) {
  int32_t* token_ids = view.token_ids.as<int32_t>();
  int32_t* positions = view.positions.as<int32_t>();
  int64_t* slot_mapping = view.slot_mapping.as<int64_t>();
  for (const Piece& p : pieces(view.microbatch)) {
    const Slot& slot = slots.slot(p.slot);
    for (int j = 0; j < p.num_rows; ++j) {
      const int row = p.first_row + j;
      if (p.first_position < 0) {
        const int position = slot.slot_len() - 1 + j;
        // A row without a draft, or whose token would pass the end, is dead: like padding, it is written nowhere and
        // accepted never. The first row is exempt from the second rule, so that every live slot moves on.
        const bool has_token = j <= static_cast<int>(slot.drafts.size());
        const bool fits = position + (j > 0 ? 1 : 0) < p.max_seq_len;
        const bool live = has_token && fits && slots.cache_row(p.slot, position) >= 0;
        positions[row] = live ? position : -1;
        token_ids[row] = !live ? 0 : (j == 0 ? slot.tokens.back() : slot.drafts[j - 1]);
      }
      slot_mapping[row] = positions[row] < 0 ? -1 : slots.cache_row(p.slot, positions[row]);
    }
  }
}

}  // namespace manta::backend::host
