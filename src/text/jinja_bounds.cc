#include "text/jinja_bounds.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <span>
#include <string_view>
#include <utility>

#include "text/jinja_json.h"
#include "text/jinja_program.h"

namespace manta::text {

namespace {

thread_local RenderBudget* budget = nullptr;  // of the render that runs on this thread

uintptr_t stack_position() {
  return reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
}

struct GuardStatement : jinja::statement {
  std::string type() const override { return "Guard"; }
  jinja::value execute_impl(jinja::context&) const override {
    RenderBudget::spend();
    return jinja::mk_val<jinja::value_undefined>();
  }
};

using Tokens = std::span<const jinja::token>;

// The tokens of the tag that starts at `begin`, its closing brackets included.
Tokens tag_at(const std::vector<jinja::token>& tokens, size_t begin) {
  size_t end = begin + 1;
  while (end < tokens.size() && tokens[end - 1].t != jinja::token::close_statement &&
         tokens[end - 1].t != jinja::token::close_expression) {
    ++end;
  }
  return Tokens(tokens).subspan(begin, end - begin);
}

struct TagShape {
  int nesting = 0;       // the deepest of its brackets
  bool assigns = false;  // has a '=' outside of brackets
};

TagShape shape_of(Tokens tag) {
  using T = jinja::token;
  TagShape shape;
  int open = 0;
  for (const auto& token : tag) {
    if (token.t == T::open_paren || token.t == T::open_square_bracket || token.t == T::open_curly_bracket) ++open;
    if (token.t == T::close_paren || token.t == T::close_square_bracket || token.t == T::close_curly_bracket) --open;
    shape.nesting = std::max(shape.nesting, open);
    shape.assigns |= token.t == T::equals && open == 0;
  }
  return shape;
}

// Counts how deep the blocks of a template stand in each other; an elif is one inside its if.
class BlockDepth {
 public:
  int after(Tokens tag, bool assigns) {
    const bool is_statement = tag.size() > 1 && tag[0].t == jinja::token::open_statement;
    const std::string_view name = is_statement ? std::string_view(tag[1].value) : "";
    if (name == "if" || name == "for" || name == "macro" || name == "call" || name == "filter" ||
        (name == "set" && !assigns)) {
      open_.push_back(1);
      ++depth_;
    } else if (name == "elif" && !open_.empty()) {
      ++open_.back();
      ++depth_;
    } else if (name.starts_with("end") && name != "endgeneration" && !open_.empty()) {
      depth_ -= open_.back();
      open_.pop_back();
    }
    return depth_;
  }

 private:
  std::vector<int> open_;  // levels that each open block takes
  int depth_ = 0;
};

}  // namespace

Status check_bounds(const std::vector<jinja::token>& tokens) {
  const auto check = [](std::string_view what, size_t value, int bound) -> Status {
    if (value <= static_cast<size_t>(bound)) return {};
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("chat template: {} {}, at most {} allowed", value, what, bound));
  };
  BlockDepth blocks;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].t != jinja::token::open_statement && tokens[i].t != jinja::token::open_expression) continue;
    const Tokens tag = tag_at(tokens, i);
    const TagShape shape = shape_of(tag);
    MANTA_TRY(check("tokens in one tag", tag.size(), JinjaProgram::kMaxTagTokens));
    MANTA_TRY(check("brackets in each other", static_cast<size_t>(shape.nesting), JinjaProgram::kMaxNesting));
    MANTA_TRY(check("blocks in each other", static_cast<size_t>(blocks.after(tag, shape.assigns)),
                    JinjaProgram::kMaxBlockNesting));
  }
  return {};
}

RenderBudget::RenderBudget(size_t max_iterations)
    : outer_(std::exchange(budget, this)), stack_base_(stack_position()), max_iterations_(max_iterations) {}

RenderBudget::~RenderBudget() {
  budget = outer_;
}

void RenderBudget::spend() {
  if (++budget->num_iterations_ > budget->max_iterations_) {
    abort_render(fmt::format("the chat template loops more than {} times", budget->max_iterations_));
  }
  if (budget->stack_base_ - stack_position() > JinjaProgram::kMaxRecursionBytes) {
    abort_render("the chat template's macros call each other too deeply");
  }
}

jinja::statement_ptr make_guard(size_t pos) {
  auto guard = std::make_unique<GuardStatement>();
  guard->pos = pos;
  return guard;
}

}  // namespace manta::text
