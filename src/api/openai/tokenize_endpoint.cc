#include <fmt/format.h>

#include <memory>
#include <optional>

#include "api/openai/chat_prompt.h"
#include "api/openai/endpoints.h"
#include "api/openai/json_writer.h"
#include "api/openai/prepare.h"

namespace manta::api {
namespace {

struct TokenizeRequest {
  std::string model, prompt;
  bool has_prompt = false;
  bool add_special_tokens = true;
  bool return_token_strs = false;
};

constexpr Field<TokenizeRequest> kTokenizeFields[] = {
    {"model", [](Json v, TokenizeRequest& r) { return read_string(v, "model", r.model); }},
    {"prompt",
     [](Json v, TokenizeRequest& r) {
       r.has_prompt = true;
       return read_string(v, "prompt", r.prompt);
     }},
    {"add_special_tokens",
     [](Json v, TokenizeRequest& r) { return read_bool(v, "add_special_tokens", r.add_special_tokens); }},
    {"return_token_strs",
     [](Json v, TokenizeRequest& r) { return read_bool(v, "return_token_strs", r.return_token_strs); }},
};

struct DetokenizeRequest {
  std::string model;
  std::vector<TokenId> tokens;
  bool has_tokens = false;
};

constexpr Field<DetokenizeRequest> kDetokenizeFields[] = {
    {"model", [](Json v, DetokenizeRequest& r) { return read_string(v, "model", r.model); }},
    {"tokens",
     [](Json v, DetokenizeRequest& r) {
       r.has_tokens = true;
       return read_token_ids(v, "tokens", r.tokens);
     }},
};

template <typename R>
Problem read_known_fields(Json root, std::span<const Field<R>> fields, R& request) {
  simdjson::dom::object object;
  if (auto problem = read_object(root, "body", object)) return problem;
  for (const auto& [name, value] : object) {
    const auto* field = find_field(fields, name);
    if (!field || value.is_null()) continue;
    if (auto problem = field->read(value, request)) return problem;
  }
  return {};
}

Problem unknown_model(const LoopContext& context, const std::string& name) {
  if (context.model.answers_to(name)) return {};
  return not_found(fmt::format("The model `{}` does not exist.", name));
}

// What /tokenize is asked: a prompt as it is, or messages for the template.
struct TokenizePlan {
  TokenizeRequest request;
  std::optional<ChatRequest> chat;
  int64_t max_model_len = 0;
  HttpResponse response;
  Problem problem;
};

Problem read_tokenize(const LoopContext& context, std::string& body, TokenizePlan& plan) {
  Json root;
  if (auto problem = context.json.parse(body, root)) return problem;
  if (auto problem = read_known_fields<TokenizeRequest>(root, kTokenizeFields, plan.request)) return problem;
  if (auto problem = unknown_model(context, plan.request.model)) return problem;
  const auto engine = context.generator.model();
  plan.max_model_len = engine ? int64_t{engine->max_model_len} : context.settings.max_model_len.value_or(0);
  if (plan.request.has_prompt) return {};
  if (auto problem = parse_chat(root, plan.chat.emplace())) return problem;
  plan.request.add_special_tokens = plan.chat->add_special_tokens;
  return {};
}

// May run beside the loop: of the context it reads settings and model only.
Problem tokenize(const LoopContext& context, TokenizePlan& plan) {
  TokenizeRequest& request = plan.request;
  if (plan.chat) {
    if (auto problem = render_chat(context, *plan.chat, request.prompt)) return problem;
  }
  const auto& tokenizer = *context.model.tokenizer;
  const auto ids = tokenizer.encode(request.prompt, {.add_special_tokens = request.add_special_tokens});
  if (!ids.ok()) return from_error(ids.error());
  JsonWriter json(plan.response.body);
  json.begin_object().key("count").number(static_cast<int64_t>(ids->size()));
  json.key("max_model_len").number(plan.max_model_len).key("tokens").begin_array();
  for (const TokenId id : *ids) json.number(int64_t{id});
  json.end_array().key("token_strs");
  if (request.return_token_strs) {
    json.begin_array();
    for (const TokenId id : *ids) json.string(tokenizer.id_to_token(id));
    json.end_array();
  } else {
    json.null();
  }
  json.end_object();
  return {};
}

Problem detokenize(const LoopContext& context, std::string& body, HttpResponse& response) {
  Json root;
  DetokenizeRequest request;
  if (auto problem = context.json.parse(body, root)) return problem;
  if (auto problem = read_known_fields<DetokenizeRequest>(root, kDetokenizeFields, request)) return problem;
  if (auto problem = unknown_model(context, request.model)) return problem;
  if (!request.has_tokens) return bad_shape("tokens", "tokens: field required");
  const TokenId vocab_size = context.model.tokenizer->vocab_size();
  for (const TokenId id : request.tokens) {
    if (id >= vocab_size) {
      return bad_value("tokens", fmt::format("Token id {} is out of vocabulary ({} ids).", id, vocab_size));
    }
  }
  JsonWriter json(response.body);
  json.begin_object().key("prompt");
  json.string(context.model.tokenizer->decode(request.tokens, /*skip_special_tokens=*/false)).end_object();
  return {};
}

}  // namespace

void handle_tokenize(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer) {
  auto plan = std::make_shared<TokenizePlan>();
  if (const auto problem = read_tokenize(context, request.body, *plan)) return writer->send(problem->response());
  context.offload.run(
      request.body.size(), writer, [&context, plan] { plan->problem = tokenize(context, *plan); },
      [plan, writer] { writer->send(plan->problem ? plan->problem->response() : std::move(plan->response)); });
}

void handle_detokenize(const LoopContext& context, HttpRequest request, const ResponseWriterPtr& writer) {
  HttpResponse response;
  const auto problem = detokenize(context, request.body, response);
  writer->send(problem ? problem->response() : std::move(response));
}

void handle_tokenizer_info(const LoopContext& context, HttpRequest, const ResponseWriterPtr& writer) {
  if (context.model.tokenizer_info.empty()) {
    return writer->send(
        not_found("/tokenizer_info is not served; start the server with --enable-tokenizer-info-endpoint.").response());
  }
  writer->send({.body = context.model.tokenizer_info});
}

}  // namespace manta::api
