#include "api/openai/completion_answer.h"

#include "api/openai/logprobs.h"

namespace manta::api {
namespace {

class CompletionAnswer : public Answer {
 public:
  CompletionAnswer(const Prepared& request, const LoopContext& context, CompletionOptions options)
      : Answer(request, context, "text_completion", "text_completion"), options_(options) {}

  void write_begin(Sequence&, std::string&) override {}

  void write_pending(Sequence& sequence, std::string& out) override {
    JsonWriter writer = begin_event(sequence, out);
    write_text(sequence, writer);
    write_tail(sequence, writer);
    if (request_.return_token_ids && !sequence.begun) write_prompt_ids(sequence, writer);
    end_event(sequence, writer, out);
  }

 private:
  void write_choice(Sequence& sequence, JsonWriter& writer) override {
    writer.begin_object().key("index").number(int64_t{sequence.index()});
    write_text(sequence, writer);
    write_tail(sequence, writer);
    writer.key("prompt_logprobs");
    if (options_.prompt_logprobs) {
      write_prompt_logprobs(style(), sequence.prompt_logprobs(), writer);
    } else {
      writer.null();
    }
    if (request_.return_token_ids) write_prompt_ids(sequence, writer);
    writer.end_object();
  }

  void write_body_extras(const Sequence&, JsonWriter&) override {}

  LogprobStyle style() const { return {tokenizer_, request_.tokens_as_ids}; }
  bool echoes_now(const Sequence& sequence) const { return options_.echo && !sequence.begun; }

  std::string prompt_text(const Sequence& sequence) const {
    const Prompt& prompt = prompt_of(sequence);
    if (!prompt.text.empty()) return prompt.text;
    return tokenizer_.decode(prompt.ids, request_.skip_special_tokens);
  }

  void write_text(const Sequence& sequence, JsonWriter& writer) const {
    writer.key("text");
    const std::string_view generated = request_.generate ? std::string_view(sequence.text()) : std::string_view();
    if (echoes_now(sequence)) {
      writer.string(prompt_text(sequence).append(generated));
    } else {
      writer.string(generated);
    }
  }

  void write_tail(Sequence& sequence, JsonWriter& writer) const {
    writer.key("logprobs");
    if (options_.logprobs) {
      const std::span<const TokenId> prompt_ids =
          echoes_now(sequence) ? std::span(prompt_of(sequence).ids) : std::span<const TokenId>();
      const Rows rows = request_.generate ? Rows(sequence.logprobs()) : Rows();
      write_completion_logprobs(style(), prompt_ids, sequence.prompt_logprobs(), rows, sequence.text_offset, writer);
    } else {
      writer.null();
    }
    write_finish(sequence, finish_reason_of(sequence.finish()), writer);
    write_token_ids(sequence, writer);
  }

  void write_prompt_ids(const Sequence& sequence, JsonWriter& writer) const {
    writer.key("prompt_token_ids").begin_array();
    for (const TokenId id : prompt_of(sequence).ids) writer.number(int64_t{id});
    writer.end_array();
  }

  CompletionOptions options_;
};

}  // namespace

std::unique_ptr<Answer> make_completion_answer(const Prepared& request, const LoopContext& context,
                                               CompletionOptions options) {
  return std::make_unique<CompletionAnswer>(request, context, options);
}

}  // namespace manta::api
