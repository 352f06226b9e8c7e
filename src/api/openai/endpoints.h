// The handlers of the OpenAI endpoints. Each answers exactly once through writer, now or later.
#pragma once

#include "api/http/message.h"
#include "api/loop_context.h"

namespace manta::api {

using Handler = void (*)(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer);

void handle_completions(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer);
void handle_chat_completions(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer);
void handle_models(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer);
void handle_tokenize(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer);
void handle_tokenizer_info(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer);
void handle_detokenize(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer);

}  // namespace manta::api
