#include "manta/up_plan.h"

#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <sched.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "base/settings/assignments.h"
#include "cluster/launch/pd_file.h"
#include "manta/model_source.h"
#include "model/config.h"

namespace manta {
namespace {

using cluster::PdFile;
using cluster::RoleConfig;
using cluster::RolePlan;

std::set<std::string> network_interfaces() {
  std::set<std::string> names;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return names;
  for (const ifaddrs* at = list; at != nullptr; at = at->ifa_next) names.insert(at->ifa_name);
  ::freeifaddrs(list);
  return names;
}

cluster::Machine this_machine() {
  cluster::Machine machine;
  cpu_set_t allowed;
  if (::sched_getaffinity(0, sizeof allowed, &allowed) == 0) machine.num_cores = CPU_COUNT(&allowed);
  machine.interfaces = network_interfaces();
  return machine;
}

// What a role's settings may not say, because the file says it elsewhere or the router has it.
Status check_owned_keys(const ParsedSettings& parsed, const std::string& where) {
  constexpr std::pair<const char*, const char*> kOwned[] = {
      {"model", "stands in model_loading_config.model_source"},
      {"served_model_name", "stands in model_loading_config.model_id"},
      {"tokenizer", "stands in model_loading_config.tokenizer_source"},
      {"host", "the router has the address: manta up --host, or http_options.host"},
      {"port", "the router has the address: manta up --port, or http_options.port"},
      {"uds", "the router has the address: manta up --host and --port"},
      {"ready_file", "manta up --ready-file"},
      {"coordinator", "manta up starts one of its own"},
      {"headless", "all ranks of a role are on this machine, behind its own API"},
      {"data_parallel_rank", "all ranks of a role are on this machine"},
      {"data_parallel_start_rank", "all ranks of a role are on this machine"},
      {"data_parallel_size_local", "all ranks of a role are on this machine"},
      {"data_parallel_hybrid_lb", "all ranks of a role are on this machine"},
      {"data_parallel_external_lb", "all ranks of a role are on this machine"},
  };
  settings::Lines problems;
  for (const auto& [key, line] : kOwned) {
    const auto origin = parsed.origins.find(key);
    if (origin == parsed.origins.end() || origin->second.source != SettingSource::kCaller) continue;
    problems.add(fmt::format("{}.engine_kwargs.{}", where, key), line);
  }
  if (problems.empty()) return {};
  return error(ErrorCode::kInvalidArgument, problems.joined());
}

class Planner {
 public:
  Planner(const UpOptions& options, const EnvMap& env) : options_(options), env_(env) {}

  Result<UpPlan> plan() {
    MANTA_ASSIGN(file_, cluster::read_pd_file(options_.file));
    MANTA_TRY(read_roles());
    MANTA_TRY(fit_machine());
    separate_ports();
    share_cores();
    out_.name = file_.name;
    out_.router = router_settings();
    out_.notes.insert(out_.notes.begin(), file_.notes.begin(), file_.notes.end());
    return std::move(out_);
  }

 private:
  Status read_roles();
  Result<RolePlan> read_role(const RoleConfig& config);
  Status check_replicas(const RolePlan& role);
  Status fit_machine();
  void separate_ports();
  void share_cores();
  Settings router_settings() const;
  void add_note(const std::string& line) {
    if (std::find(out_.notes.begin(), out_.notes.end(), line) == out_.notes.end()) out_.notes.push_back(line);
  }

  const UpOptions& options_;
  const EnvMap& env_;
  const cluster::Machine machine_ = this_machine();
  PdFile file_;
  UpPlan out_;
};

// All roles' problems in one error.
Status Planner::read_roles() {
  std::string problems;
  ErrorCode code = ErrorCode::kUnimplemented;
  for (const RoleConfig& config : file_.roles) {
    auto role = read_role(config);
    if (role.ok()) {
      out_.roles.push_back(std::move(role).value());
      continue;
    }
    if (role.error().code != ErrorCode::kUnimplemented) code = role.error().code;
    problems +=
        fmt::format("{}{}, {}:\n{}", problems.empty() ? "" : "\n", options_.file, config.where, role.error().message);
  }
  if (problems.empty()) return {};
  return error(code, problems);
}

Result<RolePlan> Planner::read_role(const RoleConfig& config) {
  RolePlan role;
  role.config = config;
  EnvMap env = config.env_vars;
  env.insert(env_.begin(), env_.end());  // the file's own win
  MANTA_ASSIGN(ParsedSettings parsed, settings_from_kwargs(config.engine_kwargs, env, config.where));
  MANTA_TRY(check_owned_keys(parsed, config.where));
  for (const auto& note : parsed.notes) add_note(note);
  Settings& s = parsed.settings;
  // Drawn, unless the file wants a certain one: the router hears where each rank listens.
  if (!parsed.origins.contains("nixl_side_channel_port")) s.nixl_side_channel_port = 0;
  s.model = options_.model.value_or(config.model_source);
  s.served_model_name = {config.model_id};
  if (!options_.model) s.tokenizer = config.tokenizer_source;
  if (options_.log_level) s.log_level = *options_.log_level;
  MANTA_ASSIGN(role.settings, with_local_model(std::move(s), env));
  // Of this machine only: clients come to the router.
  role.settings.host = "127.0.0.1";
  role.settings.port = 0;
  MANTA_TRY(check_replicas(role));
  return role;
}

Status Planner::check_replicas(const RolePlan& role) {
  const auto& c = role.config;
  const int64_t ranks = role.settings.data_parallel_size;
  if (c.num_replicas && *c.num_replicas != ranks) {
    return error(
        ErrorCode::kInvalidArgument,
        fmt::format("deployment_config.num_replicas {}: a group of data_parallel_size {} has exactly that many "
                    "ranks; leave it out",
                    *c.num_replicas, ranks));
  }
  if (c.dp_size_per_node && ranks % *c.dp_size_per_node != 0) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("experimental_configs.dp_size_per_node {}: must divide data_parallel_size {}",
                             *c.dp_size_per_node, ranks));
  }
  return {};
}

Status Planner::fit_machine() {
  const Settings& any = out_.roles.front().settings;
  MANTA_ASSIGN(const auto model, model::load_config(any.model, any.hf_overrides.text));
  const cluster::ModelLimits limits{.max_model_len = model.shape.max_position_embeddings,
                                    .num_experts = model.shape.n_routed_experts};
  out_.fitted = cluster::fit(file_, out_.roles, machine_, limits);
  if (!out_.fitted.empty() && !options_.scale_to_fit) {
    std::string lines;
    for (const auto& a : out_.fitted) lines += fmt::format("\n{}: {} does not fit ({})", a.key, a.asked, a.why);
    return error(
        ErrorCode::kFailedPrecondition,
        fmt::format("{}: written for more than this machine; --scale-to-fit shrinks it:{}", options_.file, lines));
  }
  for (const RolePlan& role : out_.roles) {
    const Status fine = validate(role.settings);
    if (!fine.ok()) return error(fine.error().code, role.config.where + ": " + fine.error().message);
  }
  return {};
}

// Ranks count their side-channel ports from their role's first: the roles must not meet on one machine.
void Planner::separate_ports() {
  int64_t next = 0;
  for (RolePlan& role : out_.roles) {
    Settings& s = role.settings;
    if (!s.kv_transfer_config.kv_connector || s.nixl_side_channel_port == 0) continue;
    s.nixl_side_channel_port = std::max(s.nixl_side_channel_port, next);
    next = s.nixl_side_channel_port + s.data_parallel_size;
  }
}

void Planner::share_cores() {
  int64_t num_ranks = 0;
  for (const RolePlan& role : out_.roles) num_ranks += role.settings.data_parallel_size;
  for (RolePlan& role : out_.roles) {
    if (role.settings.cpu_threads == 0)
      role.settings.cpu_threads = std::max<int64_t>(1, machine_.num_cores / num_ranks);
  }
}

// The router renders prompts and guards the door as the role that answers would.
Settings Planner::router_settings() const {
  Settings s = out_.roles.back().settings;
  s.host = options_.host ? options_.host : file_.host;
  s.port = options_.port.value_or(static_cast<int>(file_.port.value_or(8000)));
  s.root_path = file_.route_prefix;
  for (const RolePlan& role : out_.roles) {
    (role.config.role == "prefill" ? s.prefill_policy : s.decode_policy) = role.config.policy;
  }
  return s;
}

}  // namespace

Result<UpPlan> make_up_plan(const UpOptions& options, const EnvMap& env) {
  return Planner(options, env).plan();
}

}  // namespace manta
