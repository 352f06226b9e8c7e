#include "text/tool_parser.h"

#include <fmt/format.h>

#include <array>

namespace manta::text {

namespace {

constexpr std::string_view kV3 = "deepseek_v3", kV31 = "deepseek_v31";
constexpr std::string_view kCallsBegin = "<｜tool▁calls▁begin｜>", kCallsEnd = "<｜tool▁calls▁end｜>";
constexpr std::string_view kCallBegin = "<｜tool▁call▁begin｜>", kCallEnd = "<｜tool▁call▁end｜>";
constexpr std::string_view kSeparator = "<｜tool▁sep｜>";
constexpr std::string_view kFenceBegin = "```json\n", kFencedCallEnd = "\n```<｜tool▁call▁end｜>";

std::string trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1));
}

}  // namespace

Status ToolParser::check(std::string_view name, const Tokenizer& tokenizer) {
  if (name != kV3 && name != kV31) {
    return error(ErrorCode::kInvalidArgument, fmt::format("tool parser '{}': there are {} and {}", name, kV3, kV31));
  }
  for (const auto marker : {kCallsBegin, kCallsEnd, kCallBegin, kCallEnd, kSeparator}) {
    if (!tokenizer.token_to_id(marker)) {
      return error(ErrorCode::kFailedPrecondition,
                   fmt::format("tool parser {}: the tokenizer has no token '{}'", name, marker));
    }
  }
  return {};
}

ToolParser::ToolParser(std::string_view name) : is_v31_(name == kV31) {}

void ToolParser::push(std::string_view text, Delta& out) {
  buffer_.append(text);
  while (advance(out)) {
  }
}

bool ToolParser::advance(Delta& out) {
  std::string taken;
  switch (state_) {
    case State::kContent:
      if (!buffer_.take_until(std::array{kCallsBegin}, out.content)) return false;
      state_ = State::kBetween;
      return true;
    case State::kBetween: {
      const auto marker = buffer_.take_until(std::array{kCallBegin, kCallsEnd}, taken);
      if (!marker) return false;
      name_.clear();
      state_ = *marker == 1 ? State::kDone : (is_v31_ ? State::kName : State::kType);
      return true;
    }
    case State::kType:  // always "function"
      if (!buffer_.take_until(std::array{kSeparator}, taken)) return false;
      state_ = State::kName;
      return true;
    case State::kName: {
      const auto marker =
          buffer_.take_until(std::array{is_v31_ ? kSeparator : std::string_view("\n"), kCallEnd}, name_);
      if (!marker) return false;
      start_arguments(out);
      state_ = *marker == 1 ? State::kBetween : (is_v31_ ? State::kArguments : State::kFence);
      return true;
    }
    case State::kFence:
      if (!buffer_.take_prefix(kFenceBegin)) return false;
      state_ = State::kArguments;
      return true;
    case State::kArguments: {
      const bool is_over =
          buffer_.take_until(std::array{is_v31_ ? kCallEnd : kFencedCallEnd, kCallEnd}, taken).has_value();
      add_arguments(std::move(taken), out);
      if (is_over) state_ = State::kBetween;
      return is_over;
    }
    case State::kDone: buffer_.take_all(taken); return false;
  }
  return false;
}

void ToolParser::start_arguments(Delta& out) {
  out.pieces.push_back({.index = num_calls_++, .name = trimmed(name_)});
}

void ToolParser::add_arguments(std::string arguments, Delta& out) {
  if (arguments.empty()) return;
  const int index = num_calls_ - 1;
  if (!out.pieces.empty() && out.pieces.back().index == index && out.pieces.back().name.empty()) {
    out.pieces.back().arguments += arguments;
  } else {
    out.pieces.push_back({.index = index, .arguments = std::move(arguments)});
  }
}

void ToolParser::finish(Delta& out) {
  std::string rest;
  buffer_.take_all(rest);
  if (state_ == State::kContent) {
    out.content += rest;
  } else if (state_ == State::kArguments && !rest.starts_with(kFencedCallEnd[0])) {
    add_arguments(std::move(rest), out);  // otherwise the fence had begun to close
  }
  state_ = State::kDone;
}

}  // namespace manta::text
