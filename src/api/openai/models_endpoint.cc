#include "api/openai/endpoints.h"
#include "api/openai/json_writer.h"

namespace manta::api {
namespace {

void write_permission(const ServedModel& model, JsonWriter& writer) {
  writer.key("permission").begin_array().begin_object();
  writer.key("id").string("modelperm-" + model.names.front()).key("object").string("model_permission");
  writer.key("created").number(model.created).key("allow_create_engine").boolean(false);
  for (const char* allowed : {"allow_sampling", "allow_logprobs", "allow_search_indices", "allow_view"}) {
    writer.key(allowed).boolean(allowed != std::string_view("allow_search_indices"));
  }
  writer.key("allow_fine_tuning").boolean(false).key("organization").string("*").key("group").null();
  writer.key("is_blocking").boolean(false).end_object().end_array();
}

}  // namespace

void handle_models(const LoopContext& context, HttpRequest, const ResponseWriterPtr& writer) {
  HttpResponse response;
  JsonWriter json(response.body);
  const ServedModel& model = context.model;
  const auto engine = context.generator.model();
  json.begin_object().key("object").string("list").key("data").begin_array();
  for (const auto& name : model.names) {
    json.begin_object().key("id").string(name).key("object").string("model").key("created").number(model.created);
    json.key("owned_by").string("vllm").key("root").string(model.root).key("parent").null().key("max_model_len");
    if (engine) {
      json.number(int64_t{engine->max_model_len});
    } else if (context.settings.max_model_len) {
      json.number(*context.settings.max_model_len);
    } else {
      json.null();
    }
    write_permission(model, json);
    json.end_object();
  }
  json.end_array().end_object();
  writer->send(std::move(response));
}

}  // namespace manta::api
