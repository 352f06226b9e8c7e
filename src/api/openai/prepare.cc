#include "api/openai/prepare.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>

#include "api/relay/relayed.h"
#include "sample/validate.h"

namespace manta::api {
namespace {

// Token ids of one request over all its sequences. Each travels to an engine and is kept until the answer ends.
constexpr int64_t kMaxTotalTokens = 1 << 20;
constexpr int64_t kMaxLogprobs = 1 << 26;
constexpr double kGreedyTemperature = 1e-5;  // below: greedy
constexpr double kMinTemperature = 0.01;     // below: logits would overflow (vLLM raises to it too)

std::string comma_separated(const std::vector<std::string>& names) {
  std::string out;
  for (const auto& name : names) out += (out.empty() ? "`" : ", `") + name + "`";
  return out;
}

Problem too_long(std::string_view param, int64_t limit, const std::string& what) {
  return bad_value(param, fmt::format("This model's maximum context length is {} tokens. However, your request has {}. "
                                      "Please reduce the length of the input.",
                                      limit, what));
}

Problem tokenize(const LoopContext& context, const GenerateRequest& request, int64_t limit, PromptInput& input) {
  const bool truncates = request.truncate_prompt_tokens.has_value();
  // Each token spells at most max_token_bytes, so such a text cannot fit, and need not be tokenized to say so.
  const auto max_bytes = static_cast<size_t>(limit) * context.model.max_token_bytes;
  if (!truncates && input.text.size() > max_bytes) {
    return too_long("input_text", limit,
                    fmt::format("{} bytes of text, more than {} tokens can hold", input.text.size(), limit));
  }
  auto ids = context.model.tokenizer->encode(input.text, {.add_special_tokens = request.add_special_tokens});
  if (!ids.ok()) return from_error(ids.error());
  input.ids = std::move(*ids);
  return {};
}

Problem truncate(const GenerateRequest& request, int64_t limit, std::vector<TokenId>& ids) {
  if (!request.truncate_prompt_tokens) return {};
  int64_t keep = *request.truncate_prompt_tokens;
  if (keep > limit) {
    return bad_value("truncate_prompt_tokens",
                     fmt::format("truncate_prompt_tokens={} cannot be greater than max_model_len={}.", keep, limit));
  }
  if (keep < 0) keep = limit;
  const auto size = static_cast<int64_t>(ids.size());
  if (size <= keep) return {};
  if (request.truncate_left) {
    ids.erase(ids.begin(), ids.end() - keep);
  } else {
    ids.resize(static_cast<size_t>(keep));
  }
  return {};
}

Problem check_ids(const std::vector<TokenId>& ids, int32_t vocab_size) {
  if (ids.empty()) return bad_value("prompt", "The prompt cannot be empty: it has no token.");
  for (const TokenId id : ids) {
    if (id >= vocab_size) {
      return bad_value("prompt", fmt::format("Token id {} is out of vocabulary ({} ids).", id, vocab_size));
    }
  }
  return {};
}

bool is_echo_only(const GenerateRequest& request) {
  return request.max_tokens && *request.max_tokens == 0;
}

struct Lengths {
  int64_t max_model_len = 0;
  int64_t default_max_tokens = 0;  // 0: as many as fit
  int64_t most_max_tokens = 0;     // generation_config's max_new_tokens; 0: no such bound
};

Problem make_prompt(const LoopContext& context, const engine::Welcome& engine, const GenerateRequest& request,
                    Lengths lengths, PromptInput input, Prompt& prompt) {
  const int64_t limit = lengths.max_model_len;
  if (auto problem = check_ids(input.ids, engine.vocab_size)) return problem;
  const auto num_ids = static_cast<int64_t>(input.ids.size());
  const int64_t room = limit - num_ids;
  if (room < 1) return too_long("input_tokens", limit, fmt::format("{} input tokens", num_ids));
  int64_t wanted = request.max_tokens.value_or(lengths.default_max_tokens);
  if (lengths.most_max_tokens > 0 && (wanted == 0 || wanted > lengths.most_max_tokens))
    wanted = lengths.most_max_tokens;
  if (wanted > limit) {
    return bad_value("max_tokens",
                     fmt::format("max_tokens={} cannot be greater than max_model_len={}.", wanted, limit));
  }
  if (is_echo_only(request)) wanted = 1;  // the engine must make one token
  if (wanted == 0) wanted = room;
  prompt.max_tokens = static_cast<int32_t>(std::min(wanted, room));
  prompt.text = std::move(input.text);
  prompt.is_ids = input.is_ids;
  prompt.ids = std::move(input.ids);
  return {};
}

Problem check_logprobs(const char* param, int64_t wanted, int64_t max_logprobs, int32_t vocab_size, int32_t& out) {
  if (wanted == GenerateRequest::kNone) {
    out = -1;
    return {};
  }
  const int64_t most = max_logprobs < 0 ? vocab_size : max_logprobs;
  const int64_t count = wanted == GenerateRequest::kWholeVocabulary ? vocab_size : wanted;
  if (count > most) {
    return bad_value(param,
                     fmt::format("Requested {} of {}, which is greater than max allowed: {}", param, count, most));
  }
  out = static_cast<int32_t>(count);
  return {};
}

// They are kept until the answer ends, and written as text of forty bytes each.
Problem check_logprob_entries(const Prepared& prepared, int64_t n) {
  int64_t num_prompt = 0, num_generated = 0;
  for (const Prompt& prompt : prepared.prompts) {
    num_prompt += static_cast<int64_t>(prompt.ids.size()) * (prepared.sampling.num_prompt_logprobs + 1);
    num_generated += prompt.max_tokens * n * (prepared.sampling.num_logprobs + 1);
  }
  if (num_prompt > kMaxLogprobs) {
    return bad_value("prompt_logprobs", fmt::format("the prompts' log probabilities are {}, at most {} in one request.",
                                                    num_prompt, kMaxLogprobs));
  }
  if (num_generated > kMaxLogprobs && !prepared.stream) {
    return bad_value("logprobs", fmt::format("the answers may have {} log probabilities, at most {} in one that is not "
                                             "streamed; lower logprobs, max_tokens or n.",
                                             num_generated, kMaxLogprobs));
  }
  return {};
}

// A word is forbidden at the start of a line and behind a space (vLLM).
Problem set_bad_words(const text::Tokenizer& tokenizer, const std::vector<std::string>& words,
                      std::vector<std::vector<TokenId>>& out) {
  for (const auto& word : words) {
    auto plain = tokenizer.encode(word);
    auto spaced = tokenizer.encode(" " + word);
    if (!plain.ok()) return bad_value("bad_words", plain.error().message);
    if (!spaced.ok()) return bad_value("bad_words", spaced.error().message);
    const bool both =
        !spaced->empty() && !plain->empty() && spaced->front() != plain->front() && spaced->size() == plain->size();
    if (both) out.push_back(std::move(*spaced));
    if (!plain->empty()) out.push_back(std::move(*plain));
  }
  return {};
}

float effective_temperature(double temperature) {
  if (temperature < kGreedyTemperature) return 0;
  return static_cast<float>(std::max(temperature, kMinTemperature));
}

void fill_sampling(const Settings& settings, const ServedModel& model, const GenerateRequest& request,
                   sample::SamplingParams& out) {
  const SamplingDefaults& defaults = model.defaults;
  out.temperature = effective_temperature(request.temperature.value_or(defaults.temperature.value_or(1.0)));
  out.top_p = static_cast<float>(request.top_p.value_or(defaults.top_p.value_or(1.0)));
  out.min_p = static_cast<float>(request.min_p.value_or(defaults.min_p.value_or(0.0)));
  out.repetition_penalty =
      static_cast<float>(request.repetition_penalty.value_or(defaults.repetition_penalty.value_or(1.0)));
  out.top_k = static_cast<int32_t>(std::max<int64_t>(0, request.top_k.value_or(defaults.top_k.value_or(0))));
  out.presence_penalty = static_cast<float>(request.presence_penalty);
  out.frequency_penalty = static_cast<float>(request.frequency_penalty);
  out.logit_bias = request.logit_bias;
  out.allowed_token_ids = request.allowed_token_ids;
  out.min_tokens = static_cast<int32_t>(request.min_tokens);
  out.ignore_eos = request.ignore_eos;
  out.eos_token_ids = model.eos_token_ids;
  out.stop_token_ids = request.stop_token_ids;
  out.grammar = request.grammar;
  if (settings.structured_outputs_config.disable_any_whitespace) out.grammar.any_whitespace = false;
}

Problem prepare_sampling(const LoopContext& context, const engine::Welcome& engine, const GenerateRequest& request,
                         sample::SamplingParams& out) {
  fill_sampling(context.settings, context.model, request, out);
  if (out.greedy() && request.n > 1) {
    return bad_value("n", fmt::format("n must be 1 when using greedy sampling, got {}.", request.n));
  }
  const int64_t most = context.settings.max_logprobs;
  if (auto problem = check_logprobs("logprobs", request.num_logprobs, most, engine.vocab_size, out.num_logprobs)) {
    return problem;
  }
  if (auto problem = check_logprobs("prompt_logprobs", request.num_prompt_logprobs, most, engine.vocab_size,
                                    out.num_prompt_logprobs)) {
    return problem;
  }
  if (auto problem = set_bad_words(*context.model.tokenizer, request.bad_words, out.bad_words)) return problem;
  if (request.priority != 0 && context.settings.scheduling_policy != "priority") {
    return bad_value("priority", fmt::format("Got priority {} but priority scheduling is not enabled "
                                             "(--scheduling-policy priority).",
                                             request.priority));
  }
  return {};
}

void fill_answer_options(const Settings& settings, const GenerateRequest& request, Prepared& out) {
  // The n answers of a prompt share its rows: one prefill computes them, n requests pull them.
  out.n = request.only_prefills ? 1 : request.n;
  out.has_seed = request.seed.has_value();
  out.sampling.seed = static_cast<uint64_t>(request.seed.value_or(0));
  out.include_stop_str_in_output = request.include_stop_str_in_output;
  out.skip_special_tokens = request.skip_special_tokens;
  out.generate = !is_echo_only(request);
  out.stream = request.stream;
  const StreamOptions options = request.stream_options.value_or(StreamOptions{});
  out.include_usage = options.include_usage || settings.enable_force_include_usage;
  out.continuous_usage_stats = out.include_usage && options.continuous_usage_stats;
  out.stream_interval = request.stream_interval > 0 ? request.stream_interval : settings.stream_interval;
  out.return_token_ids = request.return_token_ids;
  out.tokens_as_ids = request.return_tokens_as_token_ids.value_or(settings.return_tokens_as_token_ids);
  out.priority = static_cast<int32_t>(request.priority);
  out.cache_salt = request.cache_salt;
  out.kv_transfer_params = request.kv_transfer_params;
  if (out.n > 1 && out.kv_transfer_params.size() > 2) {
    out.kv_transfer_params.insert(1, fmt::format("\"num_readers\":{},", out.n));
  }
}

// "logit_bias …": the field a message of sample::validate begins with.
std::string first_word(const std::string& message) {
  const size_t end = message.find_first_not_of("abcdefghijklmnopqrstuvwxyz_");
  return message.substr(0, end);
}

}  // namespace

Problem check_model(const LoopContext& context, const std::string& name, engine::Welcome& engine) {
  if (!context.model.answers_to(name)) {
    ApiError missing = not_found(
        fmt::format("The model `{}` does not exist. Served here: {}.", name, comma_separated(context.model.names)));
    missing.param = "model";
    return missing;
  }
  const auto welcome = context.generator.model();
  if (!welcome || !context.generator.ready())
    return overloaded("No engine is ready to take requests; retry in a moment.");
  engine = *welcome;
  return {};
}

Problem tokenize_inputs(const LoopContext& context, const engine::Welcome& engine, const GenerateRequest& request,
                        std::vector<PromptInput>& inputs) {
  int64_t total = 0;
  for (auto& input : inputs) {
    if (!input.is_ids && input.ids.empty()) {
      if (auto problem = tokenize(context, request, engine.max_model_len, input)) return problem;
    }
    if (auto problem = truncate(request, engine.max_model_len, input.ids)) return problem;
    total += static_cast<int64_t>(input.ids.size());
    if (total > kMaxTotalTokens) {
      return bad_value("prompt", fmt::format("the prompts hold more than {} tokens", kMaxTotalTokens));
    }
  }
  return {};
}

Problem take_relayed_prompts(const Relayed& relayed, std::vector<PromptInput>& inputs) {
  const auto& prompts = relayed.prompts;
  if (prompts.size() != inputs.size()) {
    return internal_error(fmt::format("the router tokenized {} prompts of {}", prompts.size(), inputs.size()));
  }
  for (size_t i = 0; i < inputs.size(); ++i) inputs[i].ids = prompts[i];
  return {};
}

void take_relayed(std::shared_ptr<const Relayed> relayed, Prepared& prepared) {
  prepared.created = relayed && relayed->created > 0 ? relayed->created : std::time(nullptr);
  if (!relayed) return;
  prepared.relayed = relayed;
  if (relayed->data_parallel_rank >= 0) prepared.data_parallel_rank = relayed->data_parallel_rank;
  if (!relayed->prefill_only) return;
  // The token that a prefill ends with is drawn again by whoever decodes.
  const auto eos_token_ids = std::move(prepared.sampling.eos_token_ids);
  prepared.sampling = {};
  prepared.sampling.temperature = 0;
  prepared.sampling.eos_token_ids = eos_token_ids;
  prepared.sampling.ignore_eos = true;  // it must end by length, which hands the KV cache on
  prepared.sampling.max_tokens = 1;
  for (Prompt& prompt : prepared.prompts) prompt.max_tokens = 1;
  prepared.stop = nullptr;
  prepared.stream = false;
}

Problem prepare(const LoopContext& context, const engine::Welcome& engine, const GenerateRequest& request,
                std::vector<PromptInput> inputs, int64_t default_max_tokens, Prepared& out) {
  fill_answer_options(context.settings, request, out);
  if (auto problem = prepare_sampling(context, engine, request, out.sampling)) return problem;
  if (!request.stop.empty()) {
    auto stop = text::StopStrings::create(request.stop);
    if (!stop.ok()) return bad_value("stop", stop.error().message);
    out.stop = std::move(*stop);
  }
  const Lengths lengths{.max_model_len = engine.max_model_len,
                        .default_max_tokens = default_max_tokens,
                        .most_max_tokens = context.model.defaults.max_tokens.value_or(0)};
  if (auto problem = tokenize_inputs(context, engine, request, inputs)) return problem;
  int64_t total = 0;
  for (auto& input : inputs) {
    if (auto problem = make_prompt(context, engine, request, lengths, std::move(input), out.prompts.emplace_back())) {
      return problem;
    }
    total += static_cast<int64_t>(out.prompts.back().ids.size()) * request.n;
  }
  if (total > kMaxTotalTokens) {
    return bad_value("prompt",
                     fmt::format("prompts × n hold {} tokens, at most {} in one request.", total, kMaxTotalTokens));
  }
  if (auto problem = check_logprob_entries(out, request.n)) return problem;
  out.sampling.max_tokens = out.prompts.front().max_tokens;
  if (const Status valid = sample::validate(out.sampling, engine.vocab_size); !valid.ok()) {
    return bad_value(first_word(valid.error().message), valid.error().message);
  }
  return {};
}

}  // namespace manta::api
