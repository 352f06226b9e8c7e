#include "api/openai/chat_answer.h"

#include "api/openai/logprobs.h"

namespace manta::api {
namespace {

class ChatAnswer : public Answer {
 public:
  ChatAnswer(const Prepared& request, const LoopContext& context, ChatOptions options)
      : Answer(request, context, "chat.completion", "chat.completion.chunk"), options_(options) {}

  void write_begin(Sequence& sequence, std::string& out) override {
    JsonWriter writer = begin_event(sequence, out);
    writer.key("delta").begin_object().key("role").string(context_.settings.response_role);
    writer.key("content").string("").end_object();
    writer.key("logprobs").null().key("finish_reason").null();
    end_event(sequence, writer, out);
  }

  void write_pending(Sequence& sequence, std::string& out) override {
    JsonWriter writer = begin_event(sequence, out);
    writer.key("delta").begin_object().key("content").string(sequence.text()).end_object();
    write_tail(sequence, writer);
    end_event(sequence, writer, out);
  }

 private:
  void write_choice(Sequence& sequence, JsonWriter& writer) override {
    writer.begin_object().key("index").number(int64_t{sequence.index()}).key("message").begin_object();
    writer.key("role").string(context_.settings.response_role).key("content").string(sequence.text());
    writer.key("refusal").null().key("annotations").null().key("audio").null().key("function_call").null();
    writer.key("tool_calls").begin_array().end_array();
    writer.key("reasoning").null().key("reasoning_content").null().end_object();
    write_tail(sequence, writer);
    writer.end_object();
  }

  void write_body_extras(const Sequence& first, JsonWriter& writer) override {
    writer.key("prompt_logprobs");
    if (options_.prompt_logprobs) {
      write_prompt_logprobs({tokenizer_, request_.tokens_as_ids}, first.prompt_logprobs(), writer);
    } else {
      writer.null();
    }
    if (!request_.return_token_ids) return;
    writer.key("prompt_token_ids").begin_array();
    for (const TokenId id : prompt_of(first).ids) writer.number(int64_t{id});
    writer.end_array();
  }

  void write_tail(const Sequence& sequence, JsonWriter& writer) const {
    writer.key("logprobs");
    if (options_.logprobs) {
      write_chat_logprobs({tokenizer_, request_.tokens_as_ids}, sequence.logprobs(), writer);
    } else {
      writer.null();
    }
    write_finish(sequence, finish_reason_of(sequence.finish()), writer);
    write_token_ids(sequence, writer);
  }

  ChatOptions options_;
};

}  // namespace

std::unique_ptr<Answer> make_chat_answer(const Prepared& request, const LoopContext& context, ChatOptions options) {
  return std::make_unique<ChatAnswer>(request, context, options);
}

}  // namespace manta::api
