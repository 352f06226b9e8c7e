#include "text/reasoning_parser.h"

#include <fmt/format.h>

#include <array>

namespace manta::text {

namespace {

constexpr std::string_view kR1 = "deepseek_r1", kV3 = "deepseek_v3";

}  // namespace

Status ReasoningParser::check(std::string_view name, const Tokenizer& tokenizer) {
  if (name != kR1 && name != kV3) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("reasoning parser '{}': there are {} and {}", name, kR1, kV3));
  }
  for (const auto marker : {kStartMarker, kEndMarker}) {
    if (!tokenizer.token_to_id(marker)) {
      return error(ErrorCode::kFailedPrecondition,
                   fmt::format("reasoning parser {}: the tokenizer has no token '{}'", name, marker));
    }
  }
  return {};
}

bool ReasoningParser::begins_with_reasoning(std::string_view name, bool thinking) {
  return name == kR1 || thinking;
}

ReasoningParser::ReasoningParser(std::string_view name, bool thinking)
    : state_(begins_with_reasoning(name, thinking) ? State::kStart : State::kContent) {}

void ReasoningParser::push(std::string_view text, Delta& out) {
  if (state_ == State::kContent) {
    out.content.append(text);
    return;
  }
  buffer_.append(text);
  if (state_ == State::kStart) {
    if (!buffer_.take_prefix(kStartMarker)) return;  // undecided: nothing else can be said yet
    state_ = State::kReasoning;
  }
  if (buffer_.take_until(std::array{kEndMarker}, out.reasoning)) {
    state_ = State::kContent;
    buffer_.take_all(out.content);
  }
}

void ReasoningParser::finish(Delta& out) {
  buffer_.take_all(state_ == State::kContent ? out.content : out.reasoning);
}

}  // namespace manta::text
