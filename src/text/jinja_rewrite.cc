#include "text/jinja_rewrite.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "text/jinja_bounds.h"
#include "text/jinja_json.h"
#include "text/jinja_program.h"

namespace manta::text {

namespace {

// Identifiers no template can spell, so that none can shadow them.
constexpr const char* kToJsonName = "#tojson";
constexpr const char* kWithoutCycleName = "#without_cycle";
constexpr const char* kMutationName = "#mutation";
constexpr const char* kPrintName = "#print";
constexpr const char* kDivisorName = "#divisor";

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

// The engine computes with doubles: a remainder by zero would be no number and then, silently, some integer.
jinja::value divisor(const jinja::func_args& args) {
  jinja::value value = args.get_pos(0);
  if (jinja::is_val<jinja::value_int>(value) && value->as_int() == 0) {
    throw jinja::raised_exception("integer modulo by zero");
  }
  return value;
}

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
    if (auto* binary = dynamic_cast<jinja::binary_expression*>(node)) check_divisor(*binary);
  }

  // x % y  ->  x % #divisor(y)
  static void check_divisor(jinja::binary_expression& node) {
    if (node.op.value != "%") return;
    jinja::statements args;
    args.push_back(std::move(node.right));
    node.right = call_of(kDivisorName, node.pos, std::move(args));
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
    body.insert(body.begin(), make_guard(pos));
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

}  // namespace

void rewrite_program(jinja::program& program) {
  Rewriter().rewrite(program);
}

void define_functions(jinja::context& context) {
  const auto define = [&](const char* name, const jinja::func_handler& function) {
    context.set_val(name, jinja::mk_val<jinja::value_func>(name, function));
  };
  define(kToJsonName, python_tojson);
  define(kPrintName, python_print);
  define(kWithoutCycleName, without_cycle);
  define(kMutationName, refuse_mutation);
  define(kDivisorName, divisor);
  define("raise_exception", raise_exception);
  define("range", bounded_range);
}

}  // namespace manta::text
