#include "backend/host/slot_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "sample/validate.h"

namespace manta::backend::host {
namespace {

Error invalid(std::string message) {
  return error(ErrorCode::kInvalidArgument, std::move(message));
}

}  // namespace

SlotTable::SlotTable(int vocab_size, const Limits& limits, const kv::CacheGeometry& geometry)
    : vocab_size_(vocab_size),
      limits_(limits),
      num_cache_blocks_(geometry.num_blocks),
      block_size_(geometry.block_size),
      max_blocks_per_seq_((limits.max_model_len + geometry.block_size - 1) / geometry.block_size),
      slots_(limits.max_num_seqs) {}

Result<SlotTable> SlotTable::make(const ModelShape& shape, const Limits& limits, const kv::CacheGeometry& geometry) {
  SlotTable table(shape.vocab_size, limits, geometry);
  MANTA_ASSIGN(table.block_tables_, table.memory_.allocate("the block tables", DType::kI32,
                                                           {limits.max_num_seqs, table.max_blocks_per_seq_}));
  table.memory_.fill(0);
  for (Slot& slot : table.slots_) slot.drafts.reserve(limits.num_speculative_tokens);
  return table;
}

int64_t SlotTable::cache_row(SlotId id, int position) const {
  const int block = position / block_size_;
  if (block >= slots_[id].num_blocks) return -1;
  const int64_t block_id = block_tables_.as<BlockId>()[id * block_tables_.stride[0] + block];
  return block_id * block_size_ + position % block_size_;
}

Status SlotTable::check_slot_id(const char* what, SlotId id) const {
  if (id >= 0 && id < limits_.max_num_seqs) return {};
  return invalid(fmt::format("{} slot {}: must be in [0, {}) (max_num_seqs)", what, id, limits_.max_num_seqs));
}

Status SlotTable::check_blocks(SlotId id, int num_blocks_before, std::span<const BlockId> blocks) const {
  for (BlockId block : blocks) {
    if (block < 0 || block >= num_cache_blocks_) {
      return invalid(fmt::format("slot {} gets block {}: must be in [0, {})", id, block, num_cache_blocks_));
    }
  }
  const auto num_blocks = num_blocks_before + static_cast<int64_t>(blocks.size());
  if (num_blocks > max_blocks_per_seq_) {
    return invalid(fmt::format("slot {} would have {} blocks: at most {} ({} tokens in blocks of {})", id, num_blocks,
                               max_blocks_per_seq_, limits_.max_model_len, block_size_));
  }
  return {};
}

Status SlotTable::check_admission(const SlotAdmission& a, const Expected& before) const {
  if (before.occupied) return invalid(fmt::format("slot {} is admitted but taken: release it first", a.slot));
  const auto num_tokens = static_cast<int64_t>(a.tokens.size());
  if (num_tokens < 1 || num_tokens > limits_.max_model_len) {
    return invalid(fmt::format("slot {} is admitted with {} tokens: must be in [1, {}] (max_model_len)", a.slot,
                               num_tokens, limits_.max_model_len));
  }
  for (TokenId token : a.tokens) {
    if (token < 0 || token >= vocab_size_) {
      return invalid(fmt::format("slot {} is admitted with token {}: must be in [0, {}) (vocab_size)", a.slot, token,
                                 vocab_size_));
    }
  }
  if (a.num_prompt_tokens < 0 || a.num_prompt_tokens > num_tokens) {
    return invalid(fmt::format("slot {} is admitted with num_prompt_tokens {}: must be in [0, {}]", a.slot,
                               a.num_prompt_tokens, num_tokens));
  }
  if (a.sampling == nullptr) return invalid(fmt::format("slot {} is admitted without sampling parameters", a.slot));
  if (Status s = sample::validate(*a.sampling, vocab_size_); !s.ok()) {
    return invalid(fmt::format("slot {}: {}", a.slot, s.error().message));
  }
  return check_blocks(a.slot, 0, a.blocks);
}

Status SlotTable::check_prefill(const RowSlice& s, const Expected& slot) const {
  const int64_t end = static_cast<int64_t>(s.first_position) + s.num_rows;
  if (end > slot.num_tokens) {
    return invalid(fmt::format("slot {}: tokens [{}, {}) to prefill, but only {} are known", s.slot, s.first_position,
                               end, slot.num_tokens));
  }
  if (s.samples && end != slot.num_tokens) {
    return invalid(fmt::format("slot {}: a prefill slice that ends at token {} cannot sample, {} are known", s.slot,
                               end, slot.num_tokens));
  }
  const auto room = static_cast<int64_t>(slot.num_blocks + s.new_blocks.size()) * block_size_;
  if (end > room) {
    return invalid(fmt::format("slot {}: prefill to token {}, but its blocks hold {}", s.slot, end, room));
  }
  return {};
}

Status SlotTable::check_decode(const RowSlice& s, const Expected& slot) const {
  if (s.num_rows > 1 + limits_.num_speculative_tokens) {
    return invalid(fmt::format("slot {}: {} decode rows, at most {} (1 + num_speculative_tokens)", s.slot, s.num_rows,
                               1 + limits_.num_speculative_tokens));
  }
  if (s.max_seq_len < 1 || s.max_seq_len > limits_.max_model_len) {
    return invalid(fmt::format("slot {}: max_seq_len {} must be in [1, {}] (max_model_len)", s.slot, s.max_seq_len,
                               limits_.max_model_len));
  }
  if (s.prompt_logprobs) return invalid(fmt::format("slot {}: prompt logprobs asked of a decode slice", s.slot));
  const int end = std::min(slot.num_tokens - 1 + s.num_rows, s.max_seq_len);
  const auto room = static_cast<int64_t>(slot.num_blocks + s.new_blocks.size()) * block_size_;
  if (end > room) {
    return invalid(
        fmt::format("slot {}: decode writes cache rows up to {}, but its blocks hold {}", s.slot, end, room));
  }
  return {};
}

Status SlotTable::check_bitmask(const RowSlice& s) const {
  if (s.token_bitmask.empty()) return {};
  const size_t num_words = (vocab_size_ + 31) / 32;
  if (s.token_bitmask.size() != num_words) {
    return invalid(fmt::format("slot {}: a token bitmask of {} words, must be {} ({} tokens)", s.slot,
                               s.token_bitmask.size(), num_words, vocab_size_));
  }
  const bool one_row = s.first_position < 0 ? s.num_rows == 1 : s.samples;
  if (!one_row) {
    return invalid(
        fmt::format("slot {}: a token bitmask needs a one-row decode slice or a prefill slice that samples "
                    "(first position {}, {} rows)",
                    s.slot, s.first_position, s.num_rows));
  }
  return {};
}

Status SlotTable::check_slice(const RowSlice& s, const Expected& slot) const {
  if (!slot.occupied) return invalid(fmt::format("slot {} has rows but holds no request", s.slot));
  if (slot.has_slice) return invalid(fmt::format("slot {} has two slices in one step", s.slot));
  if (s.num_rows < 1 || s.num_rows > limits_.max_num_tokens) {
    return invalid(fmt::format("slot {}: {} rows, must be in [1, {}] (max_num_batched_tokens)", s.slot, s.num_rows,
                               limits_.max_num_tokens));
  }
  MANTA_TRY(check_blocks(s.slot, slot.num_blocks, s.new_blocks));
  if (s.first_position >= 0) {
    MANTA_TRY(check_prefill(s, slot));
  } else {
    MANTA_TRY(check_decode(s, slot));
  }
  return check_bitmask(s);
}

Status SlotTable::check(const StepInputs& inputs) const {
  std::vector<Expected> expected(slots_.size());
  for (size_t i = 0; i < slots_.size(); ++i) {
    expected[i] = {slots_[i].occupied, false, slots_[i].slot_len(), slots_[i].num_blocks};
  }
  for (SlotId id : inputs.released) {
    MANTA_TRY(check_slot_id("released", id));
    if (!expected[id].occupied) return invalid(fmt::format("slot {} is released but holds no request", id));
    expected[id] = {};
  }
  for (const SlotAdmission& a : inputs.admitted) {
    MANTA_TRY(check_slot_id("admitted", a.slot));
    MANTA_TRY(check_admission(a, expected[a.slot]));
    expected[a.slot] = {true, false, static_cast<int>(a.tokens.size()), static_cast<int>(a.blocks.size())};
  }
  for (const RowSlice& s : inputs.slices) {
    MANTA_TRY(check_slot_id("scheduled", s.slot));
    MANTA_TRY(check_slice(s, expected[s.slot]));
    expected[s.slot].has_slice = true;
  }
  return {};
}

void SlotTable::append_blocks(SlotId id, std::span<const BlockId> blocks) {
  BlockId* table = block_tables_.as<BlockId>() + id * block_tables_.stride[0];
  std::copy(blocks.begin(), blocks.end(), table + slots_[id].num_blocks);
  slots_[id].num_blocks += static_cast<int>(blocks.size());
}

void SlotTable::apply(const StepInputs& inputs) {
  for (SlotId id : inputs.released) {
    Slot& slot = slots_[id];
    slot.occupied = false;
    slot.tokens.clear();
    slot.drafts.clear();
    slot.num_blocks = 0;
  }
  for (const SlotAdmission& a : inputs.admitted) {
    Slot& slot = slots_[a.slot];
    slot.occupied = true;
    slot.tokens.assign(a.tokens.begin(), a.tokens.end());
    slot.num_prompt_tokens = a.num_prompt_tokens;
    slot.sampling = *a.sampling;
    append_blocks(a.slot, a.blocks);
  }
  for (const RowSlice& s : inputs.slices) {
    append_blocks(s.slot, s.new_blocks);
    // Stages allocate nothing: make room now for what the step may add, doubling so that it is rare.
    std::vector<TokenId>& tokens = slots_[s.slot].tokens;
    const size_t needed = tokens.size() + 1 + limits_.num_speculative_tokens;
    if (tokens.capacity() < needed) tokens.reserve(2 * needed);
  }
}

}  // namespace manta::backend::host
