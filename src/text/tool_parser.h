// Finds tool calls in a model's answer while it streams, in DeepSeek's two formats (B = "<｜tool▁call▁begin｜>" etc.):
//   deepseek_v3    <｜tool▁calls▁begin｜> B function SEP NAME \n```json\n ARGUMENTS \n``` E … <｜tool▁calls▁end｜>
//   deepseek_v31   <｜tool▁calls▁begin｜> B NAME SEP ARGUMENTS E … <｜tool▁calls▁end｜>
// Text before the calls is content. What stands between and behind them is dropped, as vLLM does. The markers must
// still be in the text (they are added tokens, not special ones: skip_special_tokens leaves them in).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/marker_buffer.h"
#include "text/tokenizer.h"

namespace manta::text {

// A piece of one call. The first piece of a call has its whole name and no arguments; pieces that follow add to the
// arguments: the model's own characters, not necessarily JSON.
struct ToolCallDelta {
  int index = 0;  // counts the calls of the answer
  std::string name;
  std::string arguments;
};

// One stream's parser; a value.
class ToolParser {
 public:
  // Whether `name` is a parser and the vocabulary has its markers: call it at start-up. kInvalidArgument names the
  // parsers there are, kFailedPrecondition the missing token.
  static Status check(std::string_view name, const Tokenizer& tokenizer);
  // name must have passed check().
  explicit ToolParser(std::string_view name);

  struct Delta {
    std::string content;                // what push and finish append to
    std::vector<ToolCallDelta> pieces;  // in order, at most one per call and kind of piece
  };
  void push(std::string_view text, Delta& out);
  // The stream is over. A call that was cut off keeps the arguments that came; one whose name had not come whole is
  // left out.
  void finish(Delta& out);

  int num_calls() const { return num_calls_; }  // finish_reason is "tool_calls" when there are any

 private:
  enum class State { kContent, kBetween, kType, kName, kFence, kArguments, kDone };

  bool advance(Delta& out);  // false: needs more text
  void start_arguments(Delta& out);
  void add_arguments(std::string arguments, Delta& out);

  bool is_v31_;
  State state_ = State::kContent;
  int num_calls_ = 0;
  std::string name_;  // of the call that has begun
  MarkerBuffer buffer_;
};

}  // namespace manta::text
