// Parts a model's answer into reasoning and content while it streams. The text must still hold the markers (<think> and
// </think> are added tokens, not special ones: skip_special_tokens leaves them in).
//   deepseek_r1   everything up to "</think>" is reasoning, also when "<think>" does not come (the chat template of R1
//                 already ends with it); a "<think>" at the very start is dropped
//   deepseek_v3   as deepseek_r1 when the request asked for thinking, otherwise all is content
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"
#include "text/marker_buffer.h"
#include "text/tokenizer.h"

namespace manta::text {

// One stream's parser; a value.
class ReasoningParser {
 public:
  // Whether `name` is a parser and the vocabulary has its markers: call it at start-up. kInvalidArgument names the
  // parsers there are, kFailedPrecondition the missing token.
  static Status check(std::string_view name, const Tokenizer& tokenizer);
  // Whether an answer begins with reasoning, unless its prompt has ended that already.
  static bool begins_with_reasoning(std::string_view name, bool thinking);
  // thinking: chat_template_kwargs.thinking or .enable_thinking is true. name must have passed check().
  ReasoningParser(std::string_view name, bool thinking);

  struct Delta {
    std::string reasoning, content;  // what push and finish append to
  };
  void push(std::string_view text, Delta& out);
  // The stream is over: what was held back goes where it belongs.
  void finish(Delta& out);

  // Structured output constrains content only: it starts when this turns false.
  bool is_reasoning() const { return state_ != State::kContent; }

  // The markers whose tokens begin and end reasoning.
  static constexpr std::string_view kStartMarker = "<think>", kEndMarker = "</think>";

 private:
  enum class State { kStart, kReasoning, kContent };

  State state_;
  MarkerBuffer buffer_;
};

}  // namespace manta::text
