#include "backend/cuda/results.h"

#include <fmt/format.h>

#include <algorithm>

#include "sample/sampler.h"

namespace manta::backend::cuda {
namespace {

size_t logprob_bytes(const Limits& l) {
  const size_t rows = static_cast<size_t>(l.max_num_tokens) + l.max_num_seqs * (1 + l.num_speculative_tokens);
  return rows * (2 * (1 + kMaxLogprobs) + 1) * sizeof(int32_t);
}

}  // namespace

Status StepResults::init(const Limits& limits, int vocab_size) {
  limits_ = limits;
  vocab_size_ = vocab_size;
  MANTA_TRY(done_.create());
  const size_t sampled =
      static_cast<size_t>(limits.max_num_seqs) * (4 + limits.num_speculative_tokens) * sizeof(int32_t);
  constexpr size_t kLoad = 1u << 20;  // 58 layers x 288 experts are 67 KB
  return host_.reserve((sampled + logprob_bytes(limits) + 4096) * limits.num_microbatches + kLoad);
}

void StepResults::begin(const StepInputs& inputs, const host::SlotTable& slots) {
  used_ = 0;
  num_load_layers_ = 0;
  parts_.clear();
  outcomes_.clear();
  outcomes_.resize(inputs.slices.size());
  for (size_t i = 0; i < inputs.slices.size(); ++i) {
    const RowSlice& s = inputs.slices[i];
    const host::Slot& slot = slots.slot(s.slot);
    Outcome& o = outcomes_[i];
    o.pending = s.first_position < 0 || s.samples;
    o.reports = o.pending || s.prompt_logprobs;
    o.first_position = s.first_position;
    o.num_prompt_tokens = slot.num_prompt_tokens;
    o.num_logprobs = std::min(slot.sampling.num_logprobs, vocab_size_);
    o.num_prompt_logprobs = s.prompt_logprobs ? std::clamp(slot.sampling.num_prompt_logprobs, 0, vocab_size_) : -1;
    o.slice.slot = s.slot;
    o.slice.num_rows = s.num_rows;
    if (!s.prompt_logprobs) continue;
    o.slice.prompt_logprobs.resize(std::clamp(slot.num_prompt_tokens - 1 - s.first_position, 0, s.num_rows));
  }
}

Result<size_t> StepResults::fetch(const void* from, size_t num_bytes, cudaStream_t stream) {
  const size_t at = used_;
  used_ += (num_bytes + 15) / 16 * 16;
  if (used_ > host_.num_bytes()) return error(ErrorCode::kInternal, "a step's results outgrow their buffer");
  if (num_bytes > 0) {
    MANTA_TRY(check_cuda(cudaMemcpyAsync(host_.data() + at, from, num_bytes, cudaMemcpyDeviceToHost, stream),
                         "a step's results"));
  }
  return at;
}

Status StepResults::copy(const StepView& view, const StepBuffers& buffers, std::span<const host::Piece> pieces,
                         cudaStream_t stream) {
  const SampleView& s = view.sample;
  Part part;
  part.pieces.assign(pieces.begin(), pieces.end());
  part.max_rows = s.max_rows;
  const size_t n = s.num_slices, word = sizeof(int32_t);
  MANTA_ASSIGN(part.tokens, fetch(s.tokens.data, n * s.max_rows * word, stream));
  MANTA_ASSIGN(part.accepted, fetch(s.num_accepted.data, n * word, stream));
  MANTA_ASSIGN(part.faults, fetch(buffers.faults(), (n > 0 ? 2 * limits_.max_num_seqs : 0) * word, stream));
  bool has_logprobs = false, has_prompts = false;
  for (const host::Piece& p : pieces) {
    has_logprobs |= p.samples && outcomes_[p.slice].num_logprobs >= 0;
    has_prompts |= p.prompt_logprobs;
  }
  if (has_logprobs) {
    const size_t rows = n * s.max_rows;
    MANTA_ASSIGN(part.ids, fetch(buffers.sampled().ids, rows * (1 + kMaxLogprobs) * word, stream));
    MANTA_ASSIGN(part.values, fetch(buffers.sampled().values, rows * (1 + kMaxLogprobs) * word, stream));
    MANTA_ASSIGN(part.ranks, fetch(buffers.sampled().ranks, rows * word, stream));
  }
  if (has_prompts) {
    const size_t rows = view.num_logit_rows;
    MANTA_ASSIGN(part.prompt_ids, fetch(buffers.prompt_results().ids, rows * (1 + kMaxLogprobs) * word, stream));
    MANTA_ASSIGN(part.prompt_values, fetch(buffers.prompt_results().values, rows * (1 + kMaxLogprobs) * word, stream));
    MANTA_ASSIGN(part.prompt_ranks, fetch(buffers.prompt_results().ranks, rows * word, stream));
  }
  parts_.push_back(std::move(part));
  return {};
}

Status StepResults::copy_load(const int32_t* values, int num_layers, int num_physical, cudaStream_t stream) {
  num_load_layers_ = num_layers;
  num_physical_ = num_physical;
  MANTA_ASSIGN(load_, fetch(values, static_cast<size_t>(num_layers) * num_physical * sizeof(int32_t), stream));
  return {};
}

sample::TokenLogprobs StepResults::logprobs(size_t ids, size_t values, size_t ranks, int64_t row, int num_best) const {
  sample::TokenLogprobs out;
  const int32_t* id = at<int32_t>(ids) + row * (1 + kMaxLogprobs);
  const float* value = at<float>(values) + row * (1 + kMaxLogprobs);
  out.token_ids.assign(id, id + 1 + num_best);
  out.logprobs.assign(value, value + 1 + num_best);
  out.rank = at<int32_t>(ranks)[row];
  return out;
}

void StepResults::read_sampled(const Part& part, const host::Piece& p) {
  Outcome& o = outcomes_[p.slice];
  const int i = p.sample_index, accepted = at<int32_t>(part.accepted)[i];
  o.pending = false;
  const int32_t* tokens = at<int32_t>(part.tokens) + i * part.max_rows;
  const int32_t fault = at<int32_t>(part.faults)[i];
  if (fault != kRowFine) {
    const auto why = fault == kRowNotFinite ? sample::RowFault::kNotFinite : sample::RowFault::kNothingAllowed;
    o.slice.error = fmt::format("token {} of the sequence: {}", at<int32_t>(part.faults)[limits_.max_num_seqs + i],
                                sample::to_string(why));
    return;
  }
  if (o.num_logprobs > kMaxLogprobs) {
    o.slice.error = fmt::format("logprobs {}: the cuda backend gives at most {}", o.num_logprobs, kMaxLogprobs);
    return;
  }
  o.slice.tokens.assign(tokens, tokens + accepted);
  for (int j = 0; j < accepted && o.num_logprobs >= 0; ++j) {
    o.slice.logprobs.push_back(
        logprobs(part.ids, part.values, part.ranks, int64_t{i} * part.max_rows + j, o.num_logprobs));
  }
}

void StepResults::read_prompts(const Part& part, const host::Piece& p) {
  Outcome& o = outcomes_[p.slice];
  if (o.num_prompt_logprobs > kMaxLogprobs) {
    o.slice.error =
        fmt::format("prompt_logprobs {}: the cuda backend gives at most {}", o.num_prompt_logprobs, kMaxLogprobs);
    return;
  }
  const int first = p.first_position - o.first_position;
  for (int j = 0; j < p.num_rows && first + j < static_cast<int>(o.slice.prompt_logprobs.size()); ++j) {
    o.slice.prompt_logprobs[first + j] =
        logprobs(part.prompt_ids, part.prompt_values, part.prompt_ranks, p.first_logit_row + j, o.num_prompt_logprobs);
  }
}

Result<StepOutputs> StepResults::take() {
  MANTA_TRY(done_.wait());
  for (const Part& part : parts_) {
    for (const host::Piece& piece : part.pieces) {
      if (piece.prompt_logprobs) read_prompts(part, piece);
      if (piece.samples) read_sampled(part, piece);
    }
  }
  StepOutputs out;
  for (Outcome& o : outcomes_) {
    if (o.pending) {
      return error(ErrorCode::kInternal, fmt::format("slot {} should have sampled and did not", o.slice.slot));
    }
    if (!o.slice.error.empty()) o.slice.tokens.clear();
    if (o.reports) out.slices.push_back(std::move(o.slice));
  }
  outcomes_.clear();
  for (int layer = 0; layer < num_load_layers_; ++layer) {
    const int32_t* load = at<int32_t>(load_) + static_cast<size_t>(layer) * num_physical_;
    out.expert_load.push_back({layer, std::vector<int32_t>(load, load + num_physical_)});
  }
  return out;
}

}  // namespace manta::backend::cuda
