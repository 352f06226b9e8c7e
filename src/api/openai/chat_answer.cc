#include "api/openai/chat_answer.h"

#include <fmt/format.h>

#include <map>
#include <utility>

#include "api/openai/logprobs.h"
#include "api/openai/request_id.h"

namespace manta::api {
namespace {

class ChatAnswer : public Answer {
 public:
  ChatAnswer(const Prepared& request, const LoopContext& context, ChatOptions options)
      : Answer(request, context, "chat.completion", "chat.completion.chunk"),
        options_(std::move(options)),
        is_plain_(options_.parts.is_plain()) {}

  void write_begin(Sequence& sequence, std::string& out) override {
    JsonWriter writer = begin_event(sequence, out);
    writer.key("delta").begin_object().key("role").string(context_.settings.response_role);
    writer.key("content").string("").end_object();
    writer.key("logprobs").null().key("finish_reason").null();
    if (request_.return_token_ids) write_prompt_ids(sequence, writer);
    end_event(sequence, writer, out);
  }

  void write_pending(Sequence& sequence, std::string& out) override {
    if (is_plain_) return write_plain(sequence, out);
    ChatParts& parts = parts_of(sequence);
    const ChatParts::Delta delta = parts.push(sequence.text(), sequence.finished());
    // Text that a parser holds back gives no event, unless something else is to be said.
    if (delta.empty() && !sequence.finished() && !options_.logprobs && !request_.return_token_ids) return;
    JsonWriter writer = begin_event(sequence, out);
    writer.key("delta").begin_object();
    if (!delta.reasoning.empty()) write_reasoning(delta.reasoning, writer);
    if (!delta.content.empty()) writer.key("content").string(delta.content);
    if (!delta.calls.empty()) write_call_deltas(sequence, delta.calls, writer);
    writer.end_object();
    write_tail(sequence, parts.num_calls(), writer);
    end_event(sequence, writer, out);
  }

 private:
  struct Call {
    std::string name, arguments;
  };

  // The token path of most requests.
  void write_plain(Sequence& sequence, std::string& out) const {
    JsonWriter writer = begin_event(sequence, out);
    writer.key("delta").begin_object().key("content").string(sequence.text()).end_object();
    write_tail(sequence, 0, writer);
    end_event(sequence, writer, out);
  }

  ChatParts& parts_of(const Sequence& sequence) {
    return parts_.try_emplace(sequence.index(), options_.parts).first->second;
  }

  // 0.11 called it reasoning_content, 0.33 calls it reasoning; clients of both read on.
  static void write_reasoning(std::string_view text, JsonWriter& writer) {
    writer.key("reasoning").string(text).key("reasoning_content").string(text);
  }

  std::string call_id() const { return "chatcmpl-tool-" + random_id(context_.ids); }

  void write_call_deltas(const Sequence&, const std::vector<text::ToolCallDelta>& calls, JsonWriter& writer) const {
    writer.key("tool_calls").begin_array();
    for (const auto& call : calls) {
      writer.begin_object().key("index").number(int64_t{call.index});
      if (!call.name.empty()) writer.key("id").string(call_id()).key("type").string("function");
      writer.key("function").begin_object();
      if (!call.name.empty()) writer.key("name").string(call.name);
      writer.key("arguments").string(call.arguments).end_object().end_object();
    }
    writer.end_array();
  }

  static std::vector<Call> whole_calls(const std::vector<text::ToolCallDelta>& deltas) {
    std::map<int, Call> calls;
    for (const auto& delta : deltas) {
      Call& call = calls[delta.index];
      call.name += delta.name;
      call.arguments += delta.arguments;
    }
    std::vector<Call> out;
    for (auto& [index, call] : calls) out.push_back(std::move(call));
    return out;
  }

  void write_choice(Sequence& sequence, JsonWriter& writer) override {
    ChatParts& parts = parts_of(sequence);
    const ChatParts::Delta delta = parts.push(sequence.text(), /*is_last=*/true);
    writer.begin_object().key("index").number(int64_t{sequence.index()}).key("message").begin_object();
    writer.key("role").string(context_.settings.response_role).key("content");
    // No content is null where it could have been elsewhere, "" where the model just said nothing.
    if (delta.content.empty() && !is_plain_) {
      writer.null();
    } else {
      writer.string(delta.content);
    }
    writer.key("refusal").null().key("annotations").null().key("audio").null().key("function_call").null();
    write_calls(whole_calls(delta.calls), writer);
    if (delta.reasoning.empty()) {
      writer.key("reasoning").null().key("reasoning_content").null();
    } else {
      write_reasoning(delta.reasoning, writer);
    }
    writer.end_object();
    write_tail(sequence, parts.num_calls(), writer);
    writer.end_object();
  }

  void write_calls(const std::vector<Call>& calls, JsonWriter& writer) const {
    writer.key("tool_calls").begin_array();
    for (const auto& call : calls) {
      writer.begin_object().key("id").string(call_id()).key("type").string("function").key("function").begin_object();
      writer.key("name").string(call.name).key("arguments").string(call.arguments).end_object().end_object();
    }
    writer.end_array();
  }

  void write_body_extras(const Sequence& first, JsonWriter& writer) override {
    writer.key("prompt_logprobs");
    if (options_.prompt_logprobs) {
      write_prompt_logprobs({tokenizer_, request_.tokens_as_ids}, first.prompt_logprobs(), writer);
    } else {
      writer.null();
    }
    if (request_.return_token_ids) write_prompt_ids(first, writer);
  }

  void write_prompt_ids(const Sequence& sequence, JsonWriter& writer) const {
    writer.key("prompt_token_ids").begin_array();
    for (const TokenId id : prompt_of(sequence).ids) writer.number(int64_t{id});
    writer.end_array();
  }

  // A named tool was the client's choice, not the model's: its answer just stops (OpenAI).
  std::string_view finish_reason(const Sequence& sequence, int num_calls) const {
    const bool stopped = sequence.finish() == engine::FinishReason::kStop;
    if (stopped && num_calls > 0 && options_.parts.tool_choice != ToolChoice::kNamed) return "tool_calls";
    return finish_reason_of(sequence.finish());
  }

  void write_tail(const Sequence& sequence, int num_calls, JsonWriter& writer) const {
    writer.key("logprobs");
    if (options_.logprobs) {
      write_chat_logprobs({tokenizer_, request_.tokens_as_ids}, sequence.logprobs(), writer);
    } else {
      writer.null();
    }
    write_finish(sequence, finish_reason(sequence, num_calls), writer);
    write_token_ids(sequence, writer);
  }

  const ChatOptions options_;
  const bool is_plain_;
  std::map<int, ChatParts> parts_;  // by choice
};

}  // namespace

std::unique_ptr<Answer> make_chat_answer(const Prepared& request, const LoopContext& context, ChatOptions options) {
  return std::make_unique<ChatAnswer>(request, context, std::move(options));
}

}  // namespace manta::api
