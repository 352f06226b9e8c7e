#include "engine/messages.h"

#include "base/pack.h"

namespace manta {
static auto fields(RequestId& m) {
  return std::tie(m.client, m.serial);
}
static constexpr ErrorCode last_value(ErrorCode) {
  return ErrorCode::kInternal;
}
}  // namespace manta

namespace manta::sample {
static constexpr GrammarKind last_value(GrammarKind) {
  return GrammarKind::kStructuralTag;
}
static auto fields(GrammarSpec& m) {
  return std::tie(m.kind, m.text, m.any_whitespace, m.after_token);
}
static auto fields(SamplingParams& m) {
  return std::tie(m.temperature, m.top_p, m.top_k, m.min_p, m.presence_penalty, m.frequency_penalty,
                  m.repetition_penalty, m.seed, m.logit_bias, m.allowed_token_ids, m.bad_words, m.max_tokens,
                  m.min_tokens, m.ignore_eos, m.eos_token_ids, m.stop_token_ids, m.num_logprobs, m.num_prompt_logprobs,
                  m.grammar);
}
static auto fields(TokenLogprobs& m) {
  return std::tie(m.token_ids, m.logprobs, m.rank);
}
static constexpr FinishReason last_value(FinishReason) {
  return FinishReason::kError;
}
}  // namespace manta::sample

namespace manta::engine {

static auto fields(Hello& m) {
  return std::tie(m.client, m.process);
}
static auto fields(Welcome& m) {
  return std::tie(m.rank, m.pid, m.model, m.vocab_size, m.max_model_len, m.max_num_seqs, m.num_blocks, m.block_size,
                  m.num_speculative_tokens, m.role, m.kv_transfer);
}
static auto fields(Submit& m) {
  return std::tie(m.id, m.tokens, m.num_prompt_tokens, m.sampling, m.priority, m.cache_salt, m.kv_transfer_params);
}
static auto fields(Abort& m) {
  return std::tie(m.ids);
}
static auto fields(RequestOutput& m) {
  return std::tie(m.id, m.tokens, m.logprobs, m.prompt_logprobs, m.finish, m.stop_token, m.num_cached_tokens,
                  m.error_code, m.error_message, m.kv_transfer_params, m.queue_us, m.prefill_us);
}
static auto fields(Load& m) {
  return std::tie(m.num_running, m.num_waiting, m.num_free_blocks, m.num_blocks, m.num_prompt_tokens,
                  m.num_generation_tokens, m.num_preemptions, m.prefix_cache_queries, m.prefix_cache_hits, m.num_drafts,
                  m.num_accepted_drafts, m.kv_bytes_received, m.kv_bytes_sent, m.num_kv_failed, m.num_kv_expired,
                  m.num_kv_refused, m.num_kv_leases, m.num_steps, m.schedule_us, m.forward_us, m.dispatch_us,
                  m.combine_us, m.sample_us, m.group_epoch, m.group_size, m.num_dummy_steps, m.agree_wait_us,
                  m.num_aborted_steps, m.ep_dispatch_rows, m.ep_dispatch_bytes, m.dbo_split_steps,
                  m.dbo_vote_failed_steps, m.dbo_below_threshold_steps, m.num_eplb_rearrangements);
}
static auto fields(Outputs& m) {
  return std::tie(m.step, m.load, m.requests);
}
static auto fields(ExpertReport& m) {
  return std::tie(m.num_layers, m.num_experts, m.balancedness, m.tokens);
}
static auto fields(LoadReport& m) {
  return std::tie(m.load, m.step, m.layer, m.stage, m.busy, m.experts, m.step_times);
}
static auto fields(Stale& m) {
  return std::tie(m.current, m.ids);
}

std::string encode(const Hello& m) {
  return pack_message(m);
}
std::string encode(const Welcome& m) {
  return pack_message(m);
}
std::string encode(const Submit& m) {
  return pack_message(m);
}
std::string encode(const Abort& m) {
  return pack_message(m);
}
std::string encode(const Outputs& m) {
  return pack_message(m);
}
std::string encode(const Stale& m) {
  return pack_message(m);
}
std::string encode(const LoadReport& m) {
  return pack_message(m);
}

Result<Hello> decode_hello(std::string_view p) {
  return unpack_message<Hello>(p, "hello");
}
Result<Welcome> decode_welcome(std::string_view p) {
  return unpack_message<Welcome>(p, "welcome");
}
Result<Abort> decode_abort(std::string_view p) {
  return unpack_message<Abort>(p, "abort");
}
Result<Outputs> decode_outputs(std::string_view p) {
  return unpack_message<Outputs>(p, "outputs");
}
Result<Stale> decode_stale(std::string_view p) {
  return unpack_message<Stale>(p, "stale");
}

Result<LoadReport> decode_load_report(std::string_view p) {
  MANTA_ASSIGN(LoadReport m, unpack_message<LoadReport>(p, "load report"));
  const ExpertReport& e = m.experts;
  const bool sized = e.num_layers >= 0 && e.num_experts >= 0 &&
                     e.balancedness.size() == static_cast<size_t>(e.num_layers) &&
                     e.tokens.size() == static_cast<size_t>(e.num_layers) * static_cast<size_t>(e.num_experts);
  if (!sized) {
    return error(ErrorCode::kDataLoss,
                 fmt::format("load report: {} counts and {} layers of balancedness for {} layers of {} experts",
                             e.tokens.size(), e.balancedness.size(), e.num_layers, e.num_experts));
  }
  if (m.step_times.size() != StepTimes{}.size()) {
    return error(ErrorCode::kDataLoss, fmt::format("load report: {} counts of step times, expected {}",
                                                   m.step_times.size(), StepTimes{}.size()));
  }
  return m;
}

Result<Submit> decode_submit(std::string_view p) {
  MANTA_ASSIGN(Submit m, unpack_message<Submit>(p, "submit"));
  const auto num_tokens = static_cast<int64_t>(m.tokens.size());
  if (m.num_prompt_tokens < 1 || m.num_prompt_tokens > num_tokens) {
    return error(ErrorCode::kDataLoss,
                 fmt::format("submit message: num_prompt_tokens {} of {} tokens", m.num_prompt_tokens, num_tokens));
  }
  return m;
}

}  // namespace manta::engine
