// What keeps the Jinja engine within its stack and its time. Internal to the room: it pulls in the engine's headers.
#pragma once

#include <jinja/lexer.h>
#include <jinja/runtime.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/result.h"

namespace manta::text {

// Before parsing: the engine's parser and interpreter recurse with the source, so what would take them too deep is
// kInvalidArgument here. The bounds are those of JinjaProgram.
Status check_bounds(const std::vector<jinja::token>& tokens);

// While rendering: what the loops and macros of one render may use up, on the thread that made it.
class RenderBudget {
 public:
  explicit RenderBudget(size_t max_iterations);
  ~RenderBudget();
  RenderBudget(const RenderBudget&) = delete;
  RenderBudget& operator=(const RenderBudget&) = delete;

  // Counts one iteration of the render that runs on this thread; throws JinjaAbort when that is one too many, or when
  // macros have called each other too deep into the stack.
  static void spend();

 private:
  RenderBudget* outer_;
  uintptr_t stack_base_;
  size_t num_iterations_ = 0, max_iterations_;
};

// Renders as nothing and spends; to be put first into every loop body and macro body.
jinja::statement_ptr make_guard(size_t pos);

}  // namespace manta::text
