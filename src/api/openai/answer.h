// How an answer is written: the part in which completions and chat differ.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "api/openai/json_writer.h"
#include "api/openai/prepare.h"
#include "api/openai/sequence.h"

namespace manta::api {

class Answer {
 public:
  virtual ~Answer() = default;

  // Streaming. Both append whole SSE events ("data: …\n\n") to out; write_pending() may append none.
  virtual void write_begin(Sequence& sequence, std::string& out) = 0;  // before the sequence's first pending
  virtual void write_pending(Sequence& sequence, std::string& out) = 0;
  // The last events: usage when asked for, and [DONE].
  void write_end(std::span<const std::unique_ptr<Sequence>> sequences, std::string& out);

  // Not streaming: the whole body.
  std::string body(std::span<const std::unique_ptr<Sequence>> sequences);

 protected:
  // object: of the body, chunk_object: of the events.
  Answer(const Prepared& request, const LoopContext& context, std::string_view object, std::string_view chunk_object);

  virtual void write_choice(Sequence& sequence, JsonWriter& writer) = 0;
  virtual void write_body_extras(const Sequence& first, JsonWriter& writer) = 0;

  // An event up to the choice's first key, and from behind its last key.
  JsonWriter begin_event(const Sequence& sequence, std::string& out) const;
  void end_event(const Sequence& sequence, JsonWriter& writer, std::string& out) const;

  void write_finish(const Sequence& sequence, std::string_view finish_reason, JsonWriter& writer) const;
  void write_token_ids(const Sequence& sequence, JsonWriter& writer) const;
  const Prompt& prompt_of(const Sequence& sequence) const { return request_.prompts[sequence.prompt_idx()]; }

  const Prepared& request_;
  const LoopContext& context_;
  const text::Tokenizer& tokenizer_;

 private:
  struct Usage {
    int64_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
  };
  void write_usage(const Usage& usage, JsonWriter& writer) const;
  Usage total_usage(std::span<const std::unique_ptr<Sequence>> sequences) const;

  std::string event_head_;  // "data: {"id":…,"model":…,"choices":[": all events begin alike
  std::string body_head_;
};

// What a client reads as finish_reason.
std::string_view finish_reason_of(engine::FinishReason finish);

}  // namespace manta::api
