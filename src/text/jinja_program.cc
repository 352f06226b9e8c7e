#include "text/jinja_program.h"

#include <fmt/format.h>
#include <jinja/lexer.h>
#include <jinja/parser.h>
#include <jinja/runtime.h>
#include <jinja/value.h>

#include <algorithm>
#include <span>
#include <stdexcept>
#include <unordered_set>
#include <utility>
#include <vector>

#include "text/jinja_json.h"

namespace manta::text {

namespace {

// Identifiers no template can spell, so that none can shadow them.
constexpr const char* kToJsonName = "#tojson";
constexpr const char* kWithoutCycleName = "#without_cycle";
constexpr const char* kMutationName = "#mutation";
constexpr const char* kPrintName = "#print";

// ---- bounds while rendering ----

struct Budget {
  uintptr_t stack_base = 0;
  size_t num_iterations = 0, max_iterations = 0;
};
thread_local Budget* budget = nullptr;  // of the render that runs on this thread

uintptr_t stack_position() {
  return reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
}

// Put first into every loop body and macro body: it renders as nothing and counts.
struct GuardStatement : jinja::statement {
  std::string type() const override { return "Guard"; }
  jinja::value execute_impl(jinja::context&) const override {
    if (++budget->num_iterations > budget->max_iterations) {
      abort_render(fmt::format("the chat template loops more than {} times", budget->max_iterations));
    }
    if (budget->stack_base - stack_position() > JinjaProgram::kMaxRecursionBytes) {
      abort_render("the chat template's macros call each other too deeply");
    }
    return jinja::mk_val<jinja::value_undefined>();
  }
};

class BudgetScope {
 public:
  explicit BudgetScope(size_t num_items) : outer_(std::exchange(budget, &own_)) {
    own_.stack_base = stack_position();
    own_.max_iterations = JinjaProgram::kMaxIterations + JinjaProgram::kIterationsPerItem * num_items;
  }
  ~BudgetScope() { budget = outer_; }
  BudgetScope(const BudgetScope&) = delete;
  BudgetScope& operator=(const BudgetScope&) = delete;

 private:
  Budget own_;
  Budget* outer_;
};

// ---- functions that replace the engine's ----

jinja::value raise_exception(const jinja::func_args& args) {
  abort_render(args.get_pos(0)->as_string().str());
}

jinja::value bounded_range(const jinja::func_args& args) {
  args.ensure_count(1, 3);
  for (const auto& arg : args.get_args()) args.ensure_val<jinja::value_int>(arg);
  const bool has_start = args.count() > 1;
  int64_t value = has_start ? args.get_pos(0)->as_int() : 0;
  const int64_t stop = args.get_pos(has_start ? 1 : 0)->as_int();
  const int64_t step = args.count() > 2 ? args.get_pos(2)->as_int() : 1;
  if (step == 0) throw jinja::raised_exception("range() step argument must not be zero");
  auto items = jinja::mk_val<jinja::value_array>();
  while (step > 0 ? value < stop : value > stop) {
    if (items->as_array().size() == JinjaProgram::kMaxRange) {
      abort_render(fmt::format("range() of more than {} numbers", JinjaProgram::kMaxRange));
    }
    items->push_back(jinja::mk_val<jinja::value_int>(value));
    if (__builtin_add_overflow(value, step, &value)) break;
  }
  return items;
}

bool holds(const jinja::value& value, const jinja::value& wanted, std::unordered_set<const void*>& seen) {
  if (value == wanted) return true;
  const bool is_array = jinja::is_val<jinja::value_array>(value), is_object = jinja::is_val<jinja::value_object>(value);
  if ((!is_array && !is_object) || !seen.insert(value.get()).second) return false;
  const auto& items = value->val_arr;
  const auto& members = value->val_obj;
  return std::any_of(items.begin(), items.end(), [&](const auto& item) { return holds(item, wanted, seen); }) ||
         std::any_of(members.begin(), members.end(),
                     [&](const auto& member) { return holds(member.second, wanted, seen); });
}

// (namespace, value) -> value. A namespace inside itself would print without end.
jinja::value without_cycle(const jinja::func_args& args) {
  std::unordered_set<const void*> seen;
  if (holds(args.get_pos(1), args.get_pos(0), seen)) {
    abort_render("the chat template puts a namespace into itself");
  }
  return args.get_pos(1);
}

jinja::value refuse_mutation(const jinja::func_args&) {
  abort_render("the chat template changes a list or calls a subscript's result");
}

// ---- before parsing ----

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

// The engine's parser and interpreter recurse with the source, so what would take them too deep is refused here.
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

// ---- after parsing ----

// Changes a parsed template in place: guards into loops and macros, our functions where the engine's
// own would print or do something else than Jinja2 in transformers.
class Rewriter {
 public:
  void rewrite(jinja::program& program) {
    jinja::context context;
    // The engine's visitor gives const nodes, and none of the children of literals; the nodes themselves are not const.
    context.visitor = [&](bool, const jinja::statement* node, std::vector<jinja::visitor_pair> children) {
      for (const auto& [label, nodes] : children) {
        for (const auto* child : nodes) {
          if (child != nullptr) child->visit(context);
        }
      }
      visit_literal(node, context);
      rewrite_node(const_cast<jinja::statement*>(node));
    };
    for (const auto& statement : program.body) statement->visit(context);
    print_values(program.body);
  }

 private:
  static void visit_all(const jinja::statements& nodes, jinja::context& context) {
    for (const auto& node : nodes) node->visit(context);
  }

  static void visit_literal(const jinja::statement* node, jinja::context& context) {
    if (const auto* array = dynamic_cast<const jinja::array_literal*>(node)) visit_all(array->val, context);
    if (const auto* tuple = dynamic_cast<const jinja::tuple_literal*>(node)) visit_all(tuple->val, context);
    if (const auto* object = dynamic_cast<const jinja::object_literal*>(node)) {
      for (const auto& [key, value] : object->val) {
        key->visit(context);
        value->visit(context);
      }
    }
  }

  static void rewrite_node(jinja::statement* node) {
    if (auto* branch = dynamic_cast<jinja::if_statement*>(node)) {
      print_values(branch->body);
      print_values(branch->alternate);
    }
    if (auto* loop = dynamic_cast<jinja::for_statement*>(node)) {
      print_values(loop->default_block);
      rewrite_body(loop->body, loop->pos);
    }
    if (auto* macro = dynamic_cast<jinja::macro_statement*>(node)) rewrite_body(macro->body, macro->pos);
    if (auto* call = dynamic_cast<jinja::call_statement*>(node)) rewrite_body(call->body, call->pos);
    if (auto* filter = dynamic_cast<jinja::filter_statement*>(node)) print_values(filter->body);
    if (auto* set = dynamic_cast<jinja::set_statement*>(node)) print_values(set->body);
    if (auto* set = dynamic_cast<jinja::set_statement*>(node)) check_cycles(*set);
    if (auto* filter = dynamic_cast<jinja::filter_expression*>(node)) {
      replace_mutation(*filter);
      replace_tojson(*filter);
    }
    if (auto* call = dynamic_cast<jinja::call_expression*>(node)) replace_mutation(*call);
  }

  // The name of an identifier, or of what a call expression calls; "" for anything else.
  static std::string_view name_of(const jinja::statement* node) {
    if (const auto* call = dynamic_cast<const jinja::call_expression*>(node)) node = call->callee.get();
    const auto* name = dynamic_cast<const jinja::identifier*>(node);
    return name != nullptr ? std::string_view(name->val) : std::string_view();
  }

  // transformers renders in a sandbox where lists cannot be changed: the attempt is an error when it is made. With that
  // and with namespaces checked, no value can come to hold itself.
  static bool mutates(std::string_view name) { return name == "append" || name == "pop"; }

  static void replace_mutation(jinja::filter_expression& node) {
    if (mutates(name_of(node.filter.get()))) node.operand = call_of(kMutationName, node.pos);
  }
  static void replace_mutation(jinja::call_expression& node) {
    const auto* member = dynamic_cast<const jinja::member_expression*>(node.callee.get());
    if (member == nullptr) return;
    if (member->computed || mutates(name_of(member->property.get()))) node.callee = call_of(kMutationName, node.pos);
  }
  static jinja::statement_ptr call_of(const char* function, size_t pos, jinja::statements args = {}) {
    return at(pos, std::make_unique<jinja::call_expression>(at(pos, std::make_unique<jinja::identifier>(function)),
                                                            std::move(args)));
  }

  // {% set ns.x = value %}  ->  {% set ns.x = #without_cycle(ns, value) %}
  static void check_cycles(jinja::set_statement& set) {
    const auto* member = dynamic_cast<const jinja::member_expression*>(set.assignee.get());
    if (member == nullptr) return;
    const auto* target = dynamic_cast<const jinja::identifier*>(member->object.get());
    if (target == nullptr) throw std::runtime_error("only a name's attribute can be set");
    if (set.val == nullptr) return;  // the block form sets text
    jinja::statements args;
    args.push_back(at(set.pos, std::make_unique<jinja::identifier>(target->val)));
    args.push_back(std::move(set.val));
    set.val = call_of(kWithoutCycleName, set.pos, std::move(args));
  }

  static void rewrite_body(jinja::statements& body, size_t pos) {
    print_values(body);
    auto guard = std::make_unique<GuardStatement>();
    guard->pos = pos;
    body.insert(body.begin(), std::move(guard));
  }

  // {{ x }}  ->  {{ #print(x) }}
  static void print_values(jinja::statements& body) {
    for (auto& node : body) {
      const bool is_value = dynamic_cast<const jinja::expression*>(node.get()) != nullptr;
      if (!is_value || dynamic_cast<const jinja::string_literal*>(node.get()) != nullptr) continue;
      const size_t pos = node->pos;
      jinja::statements args;
      args.push_back(std::move(node));
      node = call_of(kPrintName, pos, std::move(args));
    }
  }

  // x | tojson(args)  ->  #tojson(x, args) | string
  static void replace_tojson(jinja::filter_expression& node) {
    auto* call = dynamic_cast<jinja::call_expression*>(node.filter.get());
    if (name_of(node.filter.get()) != "tojson") return;
    jinja::statements args;
    args.push_back(std::move(node.operand));
    if (call != nullptr) std::move(call->args.begin(), call->args.end(), std::back_inserter(args));
    node.operand = call_of(kToJsonName, node.pos, std::move(args));
    node.filter = at(node.pos, std::make_unique<jinja::identifier>("string"));
  }

  static jinja::statement_ptr at(size_t pos, jinja::statement_ptr node) {
    node->pos = pos;
    return node;
  }
};

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
    Rewriter().rewrite(state->program);
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
    const BudgetScope scope(num_items);
    context.set_val(kToJsonName, jinja::mk_val<jinja::value_func>("tojson", python_tojson));
    context.set_val(kWithoutCycleName, jinja::mk_val<jinja::value_func>("set", without_cycle));
    context.set_val(kPrintName, jinja::mk_val<jinja::value_func>("print", python_print));
    context.set_val(kMutationName, jinja::mk_val<jinja::value_func>("mutation", refuse_mutation));
    context.set_val("raise_exception", jinja::mk_val<jinja::value_func>("raise_exception", raise_exception));
    context.set_val("range", jinja::mk_val<jinja::value_func>("range", bounded_range));
    const auto results = jinja::runtime(context).execute(state_->program);
    return jinja::runtime::gather_string_parts(results)->as_string().str();
  } catch (const JinjaAbort& abort) {
    return abort.error;
  } catch (const std::exception& e) {
    return error(ErrorCode::kInvalidArgument, fmt::format("chat template: {}", short_message(e.what())));
  }
}

}  // namespace manta::text
