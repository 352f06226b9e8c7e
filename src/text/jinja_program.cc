#include "text/jinja_program.h"

#include <fmt/format.h>
#include <jinja/lexer.h>
#include <jinja/parser.h>
#include <jinja/runtime.h>
#include <jinja/value.h>

#include <utility>

#include "text/jinja_bounds.h"
#include "text/jinja_json.h"
#include "text/jinja_rewrite.h"

namespace manta::text {

namespace {

// "…------------\nWhile executing X at line 3, column 5 in source:\n…\nError: what" -> "line 3, column 5: what"
std::string short_message(std::string_view message) {
  const size_t line = message.find(" at line "), in = message.find(" in source:"), what = message.rfind("\nError: ");
  if (line == std::string_view::npos || in == std::string_view::npos || what == std::string_view::npos || in < line) {
    return std::string(message.substr(
        message.find_first_not_of('\n') == std::string_view::npos ? 0 : message.find_first_not_of('\n')));
  }
  return fmt::format("{}: {}", message.substr(line + 4, in - line - 4), message.substr(what + 8));
}

}  // namespace

struct JinjaProgram::State {
  std::string source;
  jinja::program program;
};

Result<JinjaProgram> JinjaProgram::parse(const std::string& source) {
  if (source.size() > kMaxSourceBytes) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("chat template of {} bytes, at most {} are allowed", source.size(), kMaxSourceBytes));
  }
  try {
    const jinja::lexer_result lexed = jinja::lexer().tokenize(source);
    MANTA_TRY(check_bounds(lexed.tokens));
    auto state = std::make_shared<State>();
    state->source = lexed.source;
    state->program = jinja::parse_from_tokens(lexed);
    rewrite_program(state->program);
    JinjaProgram result;
    result.state_ = std::move(state);
    return result;
  } catch (const std::exception& e) {
    return error(ErrorCode::kInvalidArgument, fmt::format("chat template: {}", short_message(e.what())));
  }
}

Result<std::string> JinjaProgram::render(std::span<const Variable> variables) const {
  try {
    jinja::context context(state_->source);
    size_t num_items = 0;
    for (const auto& [name, value] : variables) context.set_val(name, to_jinja(*value, kMaxJsonDepth, num_items));
    const RenderBudget budget(kMaxIterations + kIterationsPerItem * num_items);
    define_functions(context);
    const auto results = jinja::runtime(context).execute(state_->program);
    return jinja::runtime::gather_string_parts(results)->as_string().str();
  } catch (const JinjaAbort& abort) {
    return abort.error;
  } catch (const std::exception& e) {
    return error(ErrorCode::kInvalidArgument, fmt::format("chat template: {}", short_message(e.what())));
  }
}

}  // namespace manta::text
