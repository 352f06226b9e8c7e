#include "api/openai/answer.h"

namespace manta::api {
namespace {

std::string head(const Prepared& request, std::string_view object, std::string_view model) {
  std::string out;
  JsonWriter writer(out);
  writer.begin_object().key("id").string(request.id).key("object").string(object);
  writer.key("created").number(request.created).key("model").string(model);
  return out;
}

}  // namespace

std::string_view finish_reason_of(engine::FinishReason finish) {
  switch (finish) {
    case engine::FinishReason::kStop: return "stop";
    case engine::FinishReason::kLength: return "length";
    case engine::FinishReason::kAbort: return "abort";
    case engine::FinishReason::kNone:
    case engine::FinishReason::kError: break;
  }
  return "error";
}

Answer::Answer(const Prepared& request, const LoopContext& context, std::string_view object,
               std::string_view chunk_object)
    : request_(request), context_(context), tokenizer_(*context.model.tokenizer) {
  const std::string& model = context.model.names.front();
  event_head_ = "data: " + head(request, chunk_object, model) + ",\"choices\":[";
  body_head_ = head(request, object, model);
}

JsonWriter Answer::begin_event(const Sequence& sequence, std::string& out) const {
  out += event_head_;
  JsonWriter writer(out);
  writer.begin_object().key("index").number(int64_t{sequence.index()});
  return writer;
}

void Answer::end_event(const Sequence& sequence, JsonWriter& writer, std::string& out) const {
  out += "}]";
  if (request_.continuous_usage_stats) {
    out += ",\"usage\":";
    write_usage({.prompt_tokens = static_cast<int64_t>(prompt_of(sequence).ids.size()),
                 .completion_tokens = sequence.num_generated(),
                 .cached_tokens = sequence.num_cached_tokens()},
                writer);
  }
  out += "}\n\n";
}

void Answer::write_usage(const Usage& usage, JsonWriter& writer) const {
  writer.begin_object().key("prompt_tokens").number(usage.prompt_tokens);
  writer.key("total_tokens").number(usage.prompt_tokens + usage.completion_tokens);
  writer.key("completion_tokens").number(usage.completion_tokens);
  if (context_.settings.enable_prompt_tokens_details) {
    writer.key("prompt_tokens_details").begin_object().key("cached_tokens").number(usage.cached_tokens).end_object();
  }
  writer.end_object();
}

// A prompt counts once, however many answers it got.
Answer::Usage Answer::total_usage(std::span<const std::unique_ptr<Sequence>> sequences) const {
  Usage usage;
  for (const auto& prompt : request_.prompts) usage.prompt_tokens += static_cast<int64_t>(prompt.ids.size());
  for (const auto& sequence : sequences) {
    if (request_.generate) usage.completion_tokens += sequence->num_generated();
    if (sequence->index() % request_.n == 0) usage.cached_tokens += sequence->num_cached_tokens();
  }
  return usage;
}

void Answer::write_end(std::span<const std::unique_ptr<Sequence>> sequences, std::string& out) {
  if (request_.include_usage) {
    out += event_head_;
    out += "],\"usage\":";
    JsonWriter writer(out);
    write_usage(total_usage(sequences), writer);
    out += "}\n\n";
  }
  out += "data: [DONE]\n\n";
}

std::string Answer::body(std::span<const std::unique_ptr<Sequence>> sequences) {
  std::string out = std::move(body_head_);
  JsonWriter writer(out);
  out += ",\"choices\":";
  writer.raw("[");
  for (const auto& sequence : sequences) write_choice(*sequence, writer);
  writer.end_array();
  writer.key("usage");
  write_usage(total_usage(sequences), writer);
  writer.key("service_tier").null().key("system_fingerprint").null();
  write_body_extras(*sequences.front(), writer);
  writer.key("kv_transfer_params");
  const std::string& kv = sequences.front()->kv_transfer_params();
  writer.raw(kv.empty() ? "null" : std::string_view(kv));
  writer.end_object();
  return out;
}

void Answer::write_finish(const Sequence& sequence, std::string_view finish_reason, JsonWriter& writer) const {
  writer.key("finish_reason");
  if (!sequence.finished()) {
    writer.null();
    return;
  }
  writer.string(finish_reason).key("stop_reason").raw(sequence.stop_reason());
}

void Answer::write_token_ids(const Sequence& sequence, JsonWriter& writer) const {
  if (!request_.return_token_ids) return;
  writer.key("token_ids").begin_array();
  for (const TokenId id : sequence.tokens()) writer.number(int64_t{id});
  writer.end_array();
}

}  // namespace manta::api
