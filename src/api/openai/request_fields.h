// How the bodies' fields are read; request.cc puts the pieces together.
#pragma once

#include <span>

#include "api/openai/request.h"

namespace manta::api {

std::span<const Field<GenerateRequest>> generate_fields();    // both endpoints
std::span<const Field<GenerateRequest>> constraint_fields();  // response_format, structured_outputs, guided_*
std::span<const Field<CompletionRequest>> completion_fields();
std::span<const Field<ChatRequest>> chat_fields();

}  // namespace manta::api
