#include "backend/cuda/device_slots.h"

#include <bit>
#include <cmath>

namespace manta::backend::cuda {
namespace {

constexpr int kInlineWords = 1024;  // biases, end tokens and bad words of a request; longer lists have their own memory

int64_t token_stride(const Limits& l) {
  return int64_t{l.max_model_len} + 1 + l.num_speculative_tokens;
}

int64_t bitmask_words(const ModelShape& s) {
  return (s.vocab_size + 31) / 32;
}

// In the order that SlotSampling says.
std::vector<int32_t> pack_lists(const sample::SamplingParams& p, SlotSampling& out) {
  std::vector<int32_t> lists;
  for (const auto& [id, bias] : p.logit_bias) {
    lists.push_back(id);
    lists.push_back(std::bit_cast<int32_t>(bias));
  }
  out.num_biases = static_cast<int32_t>(p.logit_bias.size());
  lists.insert(lists.end(), p.stop_token_ids.begin(), p.stop_token_ids.end());
  if (!p.ignore_eos) lists.insert(lists.end(), p.eos_token_ids.begin(), p.eos_token_ids.end());
  out.num_end_tokens = static_cast<int32_t>(lists.size()) - 2 * out.num_biases;
  for (const auto& word : p.bad_words) {
    lists.push_back(static_cast<int32_t>(word.size()));
    lists.insert(lists.end(), word.begin(), word.end());
  }
  out.num_bad_words = static_cast<int32_t>(p.bad_words.size());
  return lists;
}

}  // namespace

size_t DeviceSlots::num_bytes(const ModelShape& s, const Limits& l, int max_blocks) {
  const size_t per_slot = token_stride(l) + max_blocks + bitmask_words(s) + kInlineWords + 8 + l.num_speculative_tokens;
  return l.max_num_seqs * (per_slot * sizeof(int32_t) + sizeof(SlotSampling));
}

Status DeviceSlots::init(const ModelShape& s, const Limits& l, int max_blocks) {
  vocab_size_ = s.vocab_size;
  const int64_t seqs = l.max_num_seqs;
  const auto take = [&](auto*& out, int64_t per_slot) -> Status {
    MANTA_ASSIGN(void* data, memory_.allocate_bytes("the slots' state", seqs * per_slot * sizeof(*out)));
    out = static_cast<std::remove_reference_t<decltype(out)>>(data);
    return {};
  };
  arrays_.token_stride = token_stride(l);
  arrays_.max_drafts = std::max(l.num_speculative_tokens, 1);
  arrays_.max_blocks = max_blocks;
  MANTA_TRY(take(arrays_.tokens, arrays_.token_stride));
  MANTA_TRY(take(arrays_.length, 1));
  MANTA_TRY(take(arrays_.num_prompt_tokens, 1));
  MANTA_TRY(take(arrays_.drafts, arrays_.max_drafts));
  MANTA_TRY(take(arrays_.num_drafts, 1));
  MANTA_TRY(take(arrays_.num_blocks, 1));
  MANTA_TRY(take(arrays_.block_tables, max_blocks));
  MANTA_TRY(take(arrays_.sampling, 1));
  MANTA_TRY(take(arrays_.allowed, bitmask_words(s)));
  MANTA_TRY(take(lists_, kInlineWords));
  block_tables_ = make_tensor(arrays_.block_tables, DType::kI32, {seqs, max_blocks});
  long_lists_.assign(seqs, nullptr);
  num_blocks_.assign(seqs, 0);
  return {};
}

Status DeviceSlots::release(SlotId slot, cudaStream_t stream) {
  num_blocks_[slot] = 0;
  void* list = std::exchange(long_lists_[slot], nullptr);
  return list == nullptr ? Status() : check_cuda(cudaFreeAsync(list, stream), "a request's token lists");
}

Result<const int32_t*> DeviceSlots::put_lists(SlotId slot, const std::vector<int32_t>& lists, Upload& upload,
                                              cudaStream_t stream) {
  int32_t* to = lists_ + int64_t{slot} * kInlineWords;
  if (lists.size() > kInlineWords) {
    MANTA_TRY(check_cuda(cudaMallocAsync(&long_lists_[slot], lists.size() * sizeof(int32_t), stream),
                         "a request's token lists"));
    to = static_cast<int32_t*>(long_lists_[slot]);
  }
  upload.put(to, lists.data(), lists.size());
  return to;
}

Status DeviceSlots::admit(const SlotAdmission& a, Upload& upload, cudaStream_t stream) {
  const sample::SamplingParams& p = *a.sampling;
  SlotSampling s;
  s.temperature = p.temperature;
  s.top_p = p.top_p;
  s.has_min_p = p.min_p > 0.0f;
  s.log_min_p = p.min_p > 0.0f ? std::log(p.min_p) : 0.0f;
  s.presence_penalty = p.presence_penalty;
  s.frequency_penalty = p.frequency_penalty;
  s.repetition_penalty = p.repetition_penalty;
  s.top_k = p.top_k;
  s.min_tokens = p.min_tokens;
  s.num_logprobs = p.num_logprobs;
  s.seed = p.seed;
  s.has_allowed = !p.allowed_token_ids.empty();
  const std::vector<int32_t> lists = pack_lists(p, s);
  MANTA_ASSIGN(s.lists, put_lists(a.slot, lists, upload, stream));
  if (s.has_allowed) {
    std::vector<uint32_t> bits((vocab_size_ + 31) / 32, 0);
    for (TokenId id : p.allowed_token_ids) bits[id / 32] |= 1u << (id % 32);
    upload.put(arrays_.allowed + int64_t{a.slot} * bits.size(), bits.data(), bits.size());
  }
  upload.put(arrays_.sampling + a.slot, s);
  upload.put(arrays_.tokens + a.slot * arrays_.token_stride, a.tokens.data(), a.tokens.size());
  upload.put(arrays_.length + a.slot, static_cast<int32_t>(a.tokens.size()));
  upload.put(arrays_.num_prompt_tokens + a.slot, static_cast<int32_t>(a.num_prompt_tokens));
  upload.put(arrays_.num_drafts + a.slot, int32_t{0});
  return {};
}

// Blocks that the table has and the device has not.
void DeviceSlots::put_blocks(SlotId slot, const host::SlotTable& table, Upload& upload) {
  const int have = num_blocks_[slot], now = table.slot(slot).num_blocks;
  if (have == now) return;
  const Tensor& t = table.block_tables();
  upload.put(arrays_.block_tables + slot * arrays_.max_blocks + have, t.as<int32_t>() + slot * t.stride[0] + have,
             now - have);
  upload.put(arrays_.num_blocks + slot, static_cast<int32_t>(now));
  num_blocks_[slot] = now;
}

Status DeviceSlots::apply(const StepInputs& inputs, const host::SlotTable& table, Upload& upload, cudaStream_t stream) {
  for (SlotId slot : inputs.released) MANTA_TRY(release(slot, stream));
  for (const SlotAdmission& a : inputs.admitted) {
    MANTA_TRY(admit(a, upload, stream));
    put_blocks(a.slot, table, upload);
    if (num_blocks_[a.slot] == 0) upload.put(arrays_.num_blocks + a.slot, int32_t{0});
  }
  for (const RowSlice& s : inputs.slices) put_blocks(s.slot, table, upload);
  return {};
}

}  // namespace manta::backend::cuda
