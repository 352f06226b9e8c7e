#include "cluster/launch/pd_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/settings/assignments.h"
#include "base/settings/table.h"
#include "base/settings/value.h"
#include "base/settings/yaml_json.h"
#include "cluster/launch/keys.h"

namespace manta::cluster {
namespace {

using nlohmann::json;

// Class names of Ray and our own names -> policies of manta's router. Ray's modules are never imported.
constexpr std::pair<const char*, const char*> kPolicies[] = {
    {"round_robin", "round_robin"},
    {"least_loaded", "least_loaded"},
    {"prefix_affinity", "prefix_affinity"},
    {"PrefixCacheAffinityRouter", "prefix_affinity"},
    {"PowerOfTwoChoicesRequestRouter", "least_loaded"},
};

const json kNull;

const json& at(const json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() ? kNull : *it;
}

class Reader {
 public:
  Result<PdFile> read(const json& file);

 private:
  // The value as a mapping with these keys only; anything else is a problem, and then it reads as empty.
  const json& object(const std::string& where, const json& value, std::span<const Key> keys);
  std::string text(const std::string& where, const json& value);
  std::optional<int64_t> count(const std::string& where, const json& value);

  void read_application(const json& application);
  void read_role(const std::string& where, const std::string& role, const json& value, const EnvMap& env);
  void read_model(RoleConfig& role, const json& value);
  void read_deployment(RoleConfig& role, const json& value);
  void read_experimental(RoleConfig& role, const json& value);
  void read_ingress(const json& value);
  EnvMap read_env_vars(const std::string& where, const json& runtime_env);
  std::string read_policy(const std::string& where, const json& value);
  void check_models();

  PdFile out_;
  settings::Lines problems_, notes_;
};

std::string below(const std::string& where, const char* key) {
  return where.empty() ? key : where + "." + key;
}

const json& Reader::object(const std::string& where, const json& value, std::span<const Key> keys) {
  static const json kEmpty = json::object();
  if (value.is_null()) return kEmpty;
  if (!value.is_object()) {
    problems_.add(where, "must hold keys and values");
    return kEmpty;
  }
  std::vector<std::string> names;
  for (const Key& key : keys) names.emplace_back(key.name);
  for (const auto& [name, inner] : value.items()) {
    const std::string path = below(where, name.c_str());
    const auto key = std::find_if(keys.begin(), keys.end(), [&name = name](const Key& k) { return name == k.name; });
    if (key == keys.end()) {
      const std::string near = settings::nearest_name(name, names);
      problems_.add(path, near.empty() ? fmt::format("unknown key; known here: {}", fmt::join(names, ", "))
                                       : fmt::format("unknown key; nearest: {}", near));
    } else if (key->use == KeyUse::kNoted) {
      notes_.add(path, key->line);
    } else if (key->use == KeyUse::kRefused) {
      problems_.add(path, key->line);
    }
  }
  return value;
}

std::string Reader::text(const std::string& where, const json& value) {
  if (value.is_null()) return "";
  if (value.is_string()) return value.get<std::string>();
  problems_.add(where, fmt::format("must be text, not {}", value.dump()));
  return "";
}

std::optional<int64_t> Reader::count(const std::string& where, const json& value) {
  if (value.is_null()) return {};
  settings::Setting row;
  row.kind = settings::Kind::kInteger;
  row.min = 1;
  const auto number = settings::coerce(row, value);
  if (number.ok()) return number->get<int64_t>();
  problems_.add(fmt::format("{} {}", where, value.dump()), number.error().message);
  return {};
}

EnvMap Reader::read_env_vars(const std::string& where, const json& runtime_env) {
  EnvMap out;
  const json& variables = at(object(where, runtime_env, runtime_env_keys()), "env_vars");
  if (variables.is_null()) return out;
  if (!variables.is_object()) {
    problems_.add(where + ".env_vars", "must hold names and values");
    return out;
  }
  for (const auto& [name, value] : variables.items()) {
    if (value.is_structured()) {
      problems_.add(fmt::format("{}.env_vars.{}", where, name), "must be text");
    } else if (!value.is_null()) {
      out[name] = settings::show(value);
    }
  }
  return out;
}

std::string Reader::read_policy(const std::string& where, const json& value) {
  const std::string name = text(where, at(object(where, value, request_router_keys()), "request_router_class"));
  if (name.empty()) return "least_loaded";
  // "ray.serve.llm.request_router:PrefixCacheAffinityRouter": the class.
  const std::string short_name = name.substr(name.find_last_of(".:") + 1);
  std::vector<std::string> known;
  for (const auto& [from, to] : kPolicies) {
    if (short_name == from) return to;
    known.emplace_back(from);
  }
  const std::string near = settings::nearest_name(short_name, known);
  problems_.add(fmt::format("{}.request_router_class {}", where, name),
                near.empty() ? fmt::format("no policy of the router; known: {}", fmt::join(known, ", "))
                             : fmt::format("no policy of the router; nearest: {}", near));
  return "least_loaded";
}

void Reader::read_model(RoleConfig& role, const json& value) {
  const std::string where = role.where + ".model_loading_config";
  const json& model = object(where, value, model_keys());
  role.model_id = text(where + ".model_id", at(model, "model_id"));
  if (role.model_id.empty()) problems_.add(where + ".model_id", "give the name that clients ask for");
  const json& source = at(model, "model_source");
  if (source.is_object()) {
    problems_.add(where + ".model_source", "cloud mirrors are not read: give a folder or a Hub id, mount the bucket");
  } else {
    role.model_source = text(where + ".model_source", source);
  }
  if (role.model_source.empty()) role.model_source = role.model_id;
  const std::string tokenizer = text(where + ".tokenizer_source", at(model, "tokenizer_source"));
  if (!tokenizer.empty()) role.tokenizer_source = tokenizer;
}

void Reader::read_deployment(RoleConfig& role, const json& value) {
  const std::string where = role.where + ".deployment_config";
  const json& deployment = object(where, value, deployment_keys());
  role.policy = read_policy(where + ".request_router_config", at(deployment, "request_router_config"));
  role.num_replicas = count(where + ".num_replicas", at(deployment, "num_replicas"));
  const json& scaling = at(deployment, "autoscaling_config");
  if (!scaling.is_null()) {
    problems_.add(where + ".autoscaling_config", "a group has exactly data_parallel_size ranks; leave it out");
  }
}

void Reader::read_experimental(RoleConfig& role, const json& value) {
  const std::string where = role.where + ".experimental_configs";
  const json& experimental = object(where, value, experimental_keys());
  role.dp_size_per_node = count(where + ".dp_size_per_node", at(experimental, "dp_size_per_node"));
  const auto port = count(where + ".NIXL_SIDE_CHANNEL_PORT_BASE", at(experimental, "NIXL_SIDE_CHANNEL_PORT_BASE"));
  if (port && !role.engine_kwargs.contains("nixl_side_channel_port")) {
    role.engine_kwargs["nixl_side_channel_port"] = *port;
  }
}

void Reader::read_role(const std::string& where, const std::string& role_name, const json& value, const EnvMap& env) {
  if (value.is_null()) return problems_.add(where, "missing");
  const json& config = object(where, value, role_keys());
  RoleConfig role;
  role.role = role_name;
  role.where = where;
  const json& kwargs = at(config, "engine_kwargs");
  if (kwargs.is_object()) {
    role.engine_kwargs = kwargs;
  } else if (!kwargs.is_null()) {
    problems_.add(where + ".engine_kwargs", "must hold keys and values");
  }
  read_model(role, at(config, "model_loading_config"));
  read_deployment(role, at(config, "deployment_config"));
  read_experimental(role, at(config, "experimental_configs"));
  role.env_vars = read_env_vars(where + ".runtime_env", at(config, "runtime_env"));
  role.env_vars.insert(env.begin(), env.end());  // the role's own win
  const std::string engine = text(where + ".llm_engine", at(config, "llm_engine"));
  if (!engine.empty() && engine != "vLLM" && engine != "manta") {
    problems_.add(fmt::format("{}.llm_engine {}", where, engine), "manta runs itself; vLLM is read as manta");
  }
  out_.roles.push_back(std::move(role));
}

// The front door may be asked for in many copies: the largest number that is named.
void Reader::read_ingress(const json& value) {
  const std::string where = "ingress_deployment_config";
  const json& ingress = object(where, value, deployment_keys());
  const std::string scaling_where = where + ".autoscaling_config";
  const json& scaling = object(scaling_where, at(ingress, "autoscaling_config"), autoscaling_keys());
  const auto take = [this](const std::string& path, const json& number) {
    out_.num_front_doors = std::max(out_.num_front_doors, count(path, number).value_or(1));
  };
  take(where + ".num_replicas", at(ingress, "num_replicas"));
  for (const char* key : {"min_replicas", "max_replicas", "initial_replicas"}) {
    take(below(scaling_where, key), at(scaling, key));
  }
  if (!at(ingress, "request_router_config").is_null()) {
    notes_.add(where + ".request_router_config", "the front door is one process: there is nothing to choose from");
  }
}

void Reader::read_application(const json& value) {
  const std::string where = "applications[0]";
  const json& application = object(where, value, application_keys());
  out_.name = text(where + ".name", at(application, "name"));
  out_.route_prefix = text(where + ".route_prefix", at(application, "route_prefix"));
  if (out_.route_prefix == "/") out_.route_prefix.clear();
  if (!out_.route_prefix.empty() && (out_.route_prefix[0] != '/' || out_.route_prefix.back() == '/')) {
    problems_.add(fmt::format("{}.route_prefix {}", where, out_.route_prefix),
                  "must begin with /, and not end with one");
  }
  const EnvMap env = read_env_vars(where + ".runtime_env", at(application, "runtime_env"));
  const json& args = object("args", at(application, "args"), args_keys());
  const std::string import_path = text(where + ".import_path", at(application, "import_path"));
  const std::string builder = import_path.substr(import_path.find_last_of(":.") + 1);
  if (builder == "build_pd_dp_openai_app" || builder == "build_pd_openai_app") {
    read_role("prefill_config", "prefill", at(args, "prefill_config"), env);
    read_role("decode_config", "decode", at(args, "decode_config"), env);
  } else if (builder == "build_dp_openai_app") {
    read_role("llm_config", "mixed", at(args, "llm_config"), env);
  } else {
    problems_.add(fmt::format("{}.import_path {}", where, import_path),
                  "known builders: pd_dpep_builder:build_pd_dp_openai_app, pd_dpep_builder:build_dp_openai_app");
  }
  read_ingress(at(args, "ingress_deployment_config"));
}

void Reader::check_models() {
  for (const RoleConfig& role : out_.roles) {
    const RoleConfig& first = out_.roles.front();
    if (role.model_id != first.model_id) {
      problems_.add(role.where + ".model_loading_config.model_id",
                    fmt::format("{} here, {} in {}; both serve one model", role.model_id, first.model_id, first.where));
    }
  }
}

Result<PdFile> Reader::read(const json& value) {
  const json& file = object("", value, file_keys());
  if (!value.is_object()) return error(ErrorCode::kInvalidArgument, "must hold keys and values: applications: [...]");
  const json& http = object("http_options", at(file, "http_options"), http_keys());
  if (const std::string host = text("http_options.host", at(http, "host")); !host.empty()) out_.host = host;
  out_.port = count("http_options.port", at(http, "port"));
  if (at(file, "query_auth_token_enabled") == true) {
    problems_.add("query_auth_token_enabled", "tokens in the query are not checked here; set VLLM_API_KEY instead");
  }
  const json& applications = at(file, "applications");
  if (applications.is_array() && applications.size() == 1) {
    read_application(applications[0]);
  } else {
    problems_.add("applications", "must be a list of one application: one front door serves one model");
  }
  check_models();
  if (!problems_.empty()) return error(ErrorCode::kInvalidArgument, problems_.joined());
  out_.notes = notes_.text();
  return std::move(out_);
}

}  // namespace

Result<PdFile> parse_pd_file(const json& file) {
  return Reader().read(file);
}

Result<PdFile> read_pd_file(const std::string& path) {
  MANTA_ASSIGN(const json file, settings::read_yaml(path));
  auto out = parse_pd_file(file);
  if (!out.ok()) return error(out.error().code, fmt::format("{}:\n{}", path, out.error().message));
  return out;
}

}  // namespace manta::cluster
