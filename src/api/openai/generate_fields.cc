#include <charconv>
#include <limits>

#include "api/openai/request_fields.h"

namespace manta::api {
namespace {

using R = GenerateRequest;
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();
constexpr int64_t kMaxTokenCount = std::numeric_limits<int32_t>::max();
constexpr double kMaxFloat = 3.4e38;
constexpr double kSmallestPositive = 1e-30;
// Sequences of one request; OpenAI's bound. Each holds a copy of the prompt in its engine.
constexpr int64_t kMaxN = 128;
constexpr size_t kMaxStopStrings = 1024;
constexpr size_t kMaxSaltBytes = 1024, kMaxTransferParamsBytes = 1 << 20;

Problem read_optional_float(Json value, std::string_view name, FloatRange range, std::optional<double>& out) {
  double number = 0;
  if (auto problem = read_float(value, name, range, number)) return problem;
  out = number;
  return {};
}

Problem read_optional_int(Json value, std::string_view name, IntRange range, std::optional<int64_t>& out) {
  int64_t number = 0;
  if (auto problem = read_int(value, name, range, number)) return problem;
  out = number;
  return {};
}

Problem read_stop(Json value, R& r) {
  if (value.is_string()) {
    r.stop.resize(1);
    if (auto problem = read_string(value, "stop", r.stop[0])) return problem;
  } else if (auto problem = read_strings(value, "stop", r.stop)) {
    return problem;
  }
  if (r.stop.size() > kMaxStopStrings) {
    return bad_value("stop", fmt::format("stop holds {} strings, at most {}.", r.stop.size(), kMaxStopStrings));
  }
  for (const auto& text : r.stop) {
    if (text.empty()) return bad_value("stop", "stop cannot contain an empty string.");
  }
  return {};
}

Problem read_logit_bias(Json value, R& r) {
  simdjson::dom::object object;
  if (auto problem = read_object(value, "logit_bias", object)) return problem;
  r.logit_bias.clear();
  for (const auto& [key, bias] : object) {
    TokenId id = 0;
    const auto [end, ec] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (ec != std::errc{} || end != key.data() + key.size()) {
      return bad_value("logit_bias", fmt::format("logit_bias: \"{}\" is not a token id.", key));
    }
    double number = 0;
    if (auto problem = read_float(bias, "logit_bias", {-kMaxFloat, kMaxFloat}, number)) return problem;
    r.logit_bias.emplace_back(id, static_cast<float>(std::clamp(number, -100.0, 100.0)));
  }
  return {};
}

Problem read_stream_options(Json value, R& r) {
  simdjson::dom::object object;
  if (auto problem = read_object(value, "stream_options", object)) return problem;
  StreamOptions options;
  for (const auto& [key, option] : object) {
    if (option.is_null()) continue;
    Problem problem;
    if (key == "include_usage") problem = read_bool(option, "stream_options.include_usage", options.include_usage);
    if (key == "continuous_usage_stats") {
      problem = read_bool(option, "stream_options.continuous_usage_stats", options.continuous_usage_stats);
    }
    if (problem) return problem;
  }
  r.stream_options = options;
  return {};
}

Problem read_allowed_token_ids(Json value, R& r) {
  if (auto problem = read_token_ids(value, "allowed_token_ids", r.allowed_token_ids)) return problem;
  if (r.allowed_token_ids.empty()) return bad_value("allowed_token_ids", "allowed_token_ids should not be empty.");
  return {};
}

Problem read_bad_words(Json value, R& r) {
  if (auto problem = read_strings(value, "bad_words", r.bad_words)) return problem;
  for (const auto& word : r.bad_words) {
    if (word.empty()) return bad_value("bad_words", "bad_words cannot contain an empty string.");
  }
  return {};
}

Problem read_truncation_side(Json value, R& r) {
  std::string side;
  if (auto problem = read_string(value, "truncation_side", side)) return problem;
  if (side != "left" && side != "right") {
    return bad_value("truncation_side", fmt::format("truncation_side must be left or right, got \"{}\".", side));
  }
  r.truncate_left = side == "left";
  return {};
}

Problem read_kv_transfer_params(Json value, R& r) {
  simdjson::dom::object object;
  if (auto problem = read_object(value, "kv_transfer_params", object)) return problem;
  r.kv_transfer_params = json_text(value);
  if (r.kv_transfer_params.size() > kMaxTransferParamsBytes) {
    return bad_value("kv_transfer_params", fmt::format("kv_transfer_params is {} bytes long, at most {}.",
                                                       r.kv_transfer_params.size(), kMaxTransferParamsBytes));
  }
  bool only_prefills = false;
  if (object["do_remote_decode"].get(only_prefills) == simdjson::SUCCESS) r.only_prefills = only_prefills;
  return {};
}

Problem refuse_beam_search(Json value, R&) {
  bool wanted = false;
  if (auto problem = read_bool(value, "use_beam_search", wanted)) return problem;
  if (wanted) return not_implemented("use_beam_search", "Beam search is not served; use n with a temperature.");
  return {};
}

Problem read_best_of(Json value, R& r) {
  int64_t best_of = 0;
  if (auto problem = read_int(value, "best_of", {1, kMaxInt64}, best_of)) return problem;
  if (best_of != 1) {
    return bad_value("best_of",
                     fmt::format("best_of={} is not served (vLLM dropped it too); ask for n answers.", best_of));
  }
  return {};
}

template <typename T>
bool is_empty_container(Json value) {
  T container;
  return value.get(container) == simdjson::SUCCESS && container.size() == 0;
}

// Fields that would change the answer and are not served. An empty list or object asks for nothing.
template <const char* kName>
Problem refuse(Json value, R&) {
  if (is_empty_container<simdjson::dom::object>(value) || is_empty_container<simdjson::dom::array>(value)) return {};
  bool flag = true;
  if (value.get(flag) == simdjson::SUCCESS && !flag) return {};
  return not_implemented(kName, fmt::format("{} is not served.", kName));
}
constexpr char kPromptEmbeds[] = "prompt_embeds", kLogitsProcessors[] = "logits_processors", kXargs[] = "vllm_xargs",
               kThinkingBudget[] = "thinking_token_budget", kRepetition[] = "repetition_detection",
               kWatermarking[] = "watermarking", kEcTransfer[] = "ec_transfer_params",
               kTokenOffsets[] = "return_token_offsets", kPromptText[] = "return_prompt_text",
               kLogprobIds[] = "logprob_token_ids", kLogprobStart[] = "prompt_logprob_start";

constexpr Field<R> kFields[] = {
    {"model", [](Json v, R& r) { return read_string(v, "model", r.model); }},
    {"max_tokens",
     [](Json v, R& r) -> Problem {
       // Two names of one thing, and max_completion_tokens wins whichever comes first.
       std::optional<int64_t> value;
       if (auto problem = read_optional_int(v, "max_tokens", {0, kMaxTokenCount}, value)) return problem;
       if (!r.has_max_completion_tokens) r.max_tokens = value;
       return {};
     }},
    {"max_completion_tokens",
     [](Json v, R& r) {
       r.has_max_completion_tokens = true;
       return read_optional_int(v, "max_completion_tokens", {0, kMaxTokenCount}, r.max_tokens);
     }},
    {"temperature",
     [](Json v, R& r) {
       return read_optional_float(v, "temperature", {0, 2}, r.temperature);
     }},
    {"top_p",
     [](Json v, R& r) {
       return read_optional_float(v, "top_p", {kSmallestPositive, 1}, r.top_p);
     }},
    {"top_k",
     [](Json v, R& r) {
       return read_optional_int(v, "top_k", {-1, kMaxTokenCount}, r.top_k);
     }},
    {"min_p",
     [](Json v, R& r) {
       return read_optional_float(v, "min_p", {0, 1}, r.min_p);
     }},
    {"presence_penalty",
     [](Json v, R& r) {
       return read_float(v, "presence_penalty", {-2, 2}, r.presence_penalty);
     }},
    {"frequency_penalty",
     [](Json v, R& r) {
       return read_float(v, "frequency_penalty", {-2, 2}, r.frequency_penalty);
     }},
    {"repetition_penalty",
     [](Json v, R& r) {
       return read_optional_float(v, "repetition_penalty", {kSmallestPositive, kMaxFloat}, r.repetition_penalty);
     }},
    {"seed",
     [](Json v, R& r) {
       return read_optional_int(v, "seed", {std::numeric_limits<int64_t>::min(), kMaxInt64}, r.seed);
     }},
    {"n",
     [](Json v, R& r) {
       return read_int(v, "n", {1, kMaxN}, r.n);
     }},
    {"best_of", read_best_of},
    {"stop", read_stop},
    {"stop_token_ids", [](Json v, R& r) { return read_token_ids(v, "stop_token_ids", r.stop_token_ids); }},
    {"include_stop_str_in_output",
     [](Json v, R& r) { return read_bool(v, "include_stop_str_in_output", r.include_stop_str_in_output); }},
    {"ignore_eos", [](Json v, R& r) { return read_bool(v, "ignore_eos", r.ignore_eos); }},
    {"min_tokens",
     [](Json v, R& r) {
       return read_int(v, "min_tokens", {0, kMaxTokenCount}, r.min_tokens);
     }},
    {"skip_special_tokens", [](Json v, R& r) { return read_bool(v, "skip_special_tokens", r.skip_special_tokens); }},
    // Byte-level decoding puts no spaces there, so both values give the same text.
    {"spaces_between_special_tokens",
     [](Json v, R&) {
       bool ignored = false;
       return read_bool(v, "spaces_between_special_tokens", ignored);
     }},
    {"logit_bias", read_logit_bias},
    {"allowed_token_ids", read_allowed_token_ids},
    {"bad_words", read_bad_words},
    {"prompt_logprobs",
     [](Json v, R& r) {
       return read_int(v, "prompt_logprobs", {R::kWholeVocabulary, kMaxTokenCount}, r.num_prompt_logprobs);
     }},
    {"stream", [](Json v, R& r) { return read_bool(v, "stream", r.stream); }},
    {"stream_options", read_stream_options},
    {"stream_interval",
     [](Json v, R& r) {
       return read_int(v, "stream_interval", {1, kMaxTokenCount}, r.stream_interval);
     }},
    {"truncate_prompt_tokens",
     [](Json v, R& r) {
       return read_optional_int(v, "truncate_prompt_tokens", {-1, kMaxTokenCount}, r.truncate_prompt_tokens);
     }},
    {"truncation_side", read_truncation_side},
    {"add_special_tokens", [](Json v, R& r) { return read_bool(v, "add_special_tokens", r.add_special_tokens); }},
    {"return_token_ids", [](Json v, R& r) { return read_bool(v, "return_token_ids", r.return_token_ids); }},
    {"return_tokens_as_token_ids",
     [](Json v, R& r) { return read_bool(v, "return_tokens_as_token_ids", r.return_tokens_as_token_ids.emplace()); }},
    {"priority",
     [](Json v, R& r) {
       return read_int(v, "priority", {std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()},
                       r.priority);
     }},
    {"cache_salt",
     [](Json v, R& r) -> Problem {
       if (auto problem = read_string(v, "cache_salt", r.cache_salt)) return problem;
       if (r.cache_salt.empty() || r.cache_salt.size() > kMaxSaltBytes) {
         return bad_value("cache_salt", fmt::format("cache_salt must be a string of 1 to {} bytes, got {}.",
                                                    kMaxSaltBytes, r.cache_salt.size()));
       }
       return {};
     }},
    {"request_id", [](Json v, R& r) { return read_string(v, "request_id", r.request_id); }},
    {"kv_transfer_params", read_kv_transfer_params},
    {"use_beam_search", refuse_beam_search},
    {kPromptEmbeds, refuse<kPromptEmbeds>},
    {kLogitsProcessors, refuse<kLogitsProcessors>},
    {kXargs, refuse<kXargs>},
    {kThinkingBudget, refuse<kThinkingBudget>},
    {kRepetition, refuse<kRepetition>},
    {kWatermarking, refuse<kWatermarking>},
    {kEcTransfer, refuse<kEcTransfer>},
    {kTokenOffsets, refuse<kTokenOffsets>},
    {kPromptText, refuse<kPromptText>},
    {kLogprobIds, refuse<kLogprobIds>},
    {kLogprobStart, refuse<kLogprobStart>},
};

}  // namespace

std::span<const Field<GenerateRequest>> generate_fields() {
  return kFields;
}

}  // namespace manta::api
