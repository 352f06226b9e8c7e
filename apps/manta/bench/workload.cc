#include "manta/bench/workload.h"

#include <fmt/format.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

namespace manta::bench {
namespace {

using nlohmann::json;

void add_stream_fields(json& body, const WorkloadOptions& o) {
  body["stream"] = true;
  body["stream_options"] = {{"include_usage", true}};
  if (!body.contains("model")) body["model"] = o.model;
  if (!body.contains("max_tokens")) body["max_tokens"] = o.output_len;
  if (o.ignore_eos) body["ignore_eos"] = true;
}

json generated(const WorkloadOptions& o, const std::vector<int>& prefix, std::mt19937_64& random) {
  std::uniform_int_distribution<int> token(3, o.vocab_size - 1);
  std::vector<int> prompt = prefix;
  while (static_cast<int>(prompt.size()) < o.input_len) prompt.push_back(token(random));
  return json{{"prompt", prompt}, {"temperature", 0}};
}

Result<std::vector<json>> read_dataset(const std::string& path) {
  std::ifstream file(path);
  if (!file) return error(ErrorCode::kNotFound, fmt::format("dataset {}: cannot be opened", path));
  std::vector<json> bodies;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const json row = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!row.is_object() || !(row.contains("messages") || row.contains("prompt"))) {
      return error(ErrorCode::kInvalidArgument,
                   fmt::format("dataset {} line {}: expected an object with messages or prompt", path, number));
    }
    json body = json::object();
    // Fields of a request, not of somebody's bookkeeping.
    for (const char* key : {"messages", "prompt", "tools", "temperature", "max_tokens", "seed", "top_p", "stop"}) {
      if (row.contains(key) && !row[key].is_null()) body[key] = row[key];
    }
    if (body.contains("messages")) body.erase("prompt");
    bodies.push_back(std::move(body));
  }
  if (bodies.empty()) return error(ErrorCode::kInvalidArgument, fmt::format("dataset {}: no requests in it", path));
  return bodies;
}

}  // namespace

Result<std::vector<LoadRequest>> make_workload(const WorkloadOptions& o) {
  std::mt19937_64 random(o.seed);
  std::uniform_int_distribution<int> token(3, o.vocab_size - 1);
  std::vector<int> prefix;
  for (int i = 0; i < std::min(o.prefix_len, o.input_len); ++i) prefix.push_back(token(random));
  std::vector<json> dataset;
  if (o.dataset) {
    MANTA_ASSIGN(dataset, read_dataset(*o.dataset));
  }
  std::exponential_distribution<double> gap(o.request_rate > 0 ? o.request_rate : 1.0);
  double at = 0;
  std::vector<LoadRequest> requests;
  for (int i = 0; i < o.num_requests; ++i) {
    json body = dataset.empty() ? generated(o, prefix, random) : dataset[i % dataset.size()];
    add_stream_fields(body, o);
    LoadRequest r;
    r.target = body.contains("messages") ? "/v1/chat/completions" : "/v1/completions";
    r.body = body.dump();
    if (o.request_rate > 0) r.start_s = at += gap(random);
    requests.push_back(std::move(r));
  }
  return requests;
}

}  // namespace manta::bench
