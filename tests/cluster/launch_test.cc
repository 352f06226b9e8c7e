// A pd.yaml as read, and what one machine can hold of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/settings/yaml_json.h"
#include "cluster/launch/command_line.h"
#include "cluster/launch/fit.h"
#include "cluster/launch/pd_file.h"

namespace manta::cluster {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

json shipped_file() {
  auto file = settings::read_yaml("deploy/pd.yaml");
  EXPECT_TRUE(file.ok());
  return std::move(file).value();
}

json& args_of(json& file) {
  return file["applications"][0]["args"];
}

std::string problem_of(const json& file) {
  const auto parsed = parse_pd_file(file);
  return parsed.ok() ? "" : parsed.error().message;
}

TEST(PdFile, TheShippedFileReadsWhole) {
  const auto file = parse_pd_file(shipped_file());
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(file->name, "deepseek-pd-wide-ep");
  EXPECT_EQ(file->route_prefix, "");
  EXPECT_EQ(file->num_front_doors, 64);
  ASSERT_EQ(file->roles.size(), 2u);
  const RoleConfig& prefill = file->roles[0];
  const RoleConfig& decode = file->roles[1];
  EXPECT_EQ(prefill.role, "prefill");
  EXPECT_EQ(prefill.model_id, "deepseek");
  EXPECT_EQ(prefill.model_source, "deepseek-ai/DeepSeek-V3-0324");
  EXPECT_EQ(prefill.policy, "prefix_affinity");
  EXPECT_EQ(prefill.dp_size_per_node, 8);
  EXPECT_EQ(prefill.engine_kwargs["data_parallel_size"], 16);
  EXPECT_EQ(prefill.env_vars.at("VLLM_ALL2ALL_BACKEND"), "deepep_high_throughput");
  EXPECT_EQ(decode.policy, "least_loaded");
  EXPECT_EQ(decode.engine_kwargs["enable_prefix_caching"], false);
  EXPECT_EQ(decode.env_vars.at("VLLM_ALL2ALL_BACKEND"), "deepep_low_latency");
}

TEST(PdFile, WhatHasNoEffectOnOneMachineIsSaid) {
  const auto file = parse_pd_file(shipped_file());
  ASSERT_TRUE(file.ok());
  const auto& notes = file->notes;
  const auto says = [&](const std::string& key) {
    return std::any_of(notes.begin(), notes.end(), [&](const auto& n) { return n.find(key) != std::string::npos; });
  };
  EXPECT_TRUE(says("working_dir"));
  EXPECT_TRUE(says("prefill_config.deployment_config.ray_actor_options"));
  EXPECT_TRUE(says("decode_config.deployment_config.ray_actor_options"));
}

TEST(PdFile, UnknownKeysComeWithTheNearestName) {
  json file = shipped_file();
  file["aplications"] = 1;
  args_of(file)["prefil_config"] = json::object();
  args_of(file)["decode_config"]["engine_kwarg"] = json::object();
  args_of(file)["prefill_config"]["experimental_configs"]["dp_size_pernode"] = 8;
  args_of(file)["ingress_deployment_config"]["autoscaling_config"]["min_replica"] = 1;
  const std::string problem = problem_of(file);
  EXPECT_THAT(problem, HasSubstr("aplications: unknown key; nearest: applications"));
  EXPECT_THAT(problem, HasSubstr("args.prefil_config: unknown key; nearest: prefill_config"));
  EXPECT_THAT(problem, HasSubstr("decode_config.engine_kwarg: unknown key; nearest: engine_kwargs"));
  EXPECT_THAT(problem,
              HasSubstr("prefill_config.experimental_configs.dp_size_pernode: unknown key; nearest: dp_size_per_node"));
  EXPECT_THAT(problem, HasSubstr("autoscaling_config.min_replica: unknown key; nearest: min_replicas"));
}

TEST(PdFile, PoliciesGoByRaysNamesAndOurs) {
  const auto policy = [](const std::string& name) {
    json file = shipped_file();
    args_of(file)["decode_config"]["deployment_config"]["request_router_config"]["request_router_class"] = name;
    const auto parsed = parse_pd_file(file);
    return parsed.ok() ? parsed->roles[1].policy : parsed.error().message;
  };
  EXPECT_EQ(policy("round_robin"), "round_robin");
  EXPECT_EQ(policy("PrefixCacheAffinityRouter"), "prefix_affinity");
  EXPECT_EQ(policy("ray.serve.llm.request_router.PrefixCacheAffinityRouter"), "prefix_affinity");
  EXPECT_EQ(policy("ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter"), "least_loaded");
  EXPECT_THAT(policy("least_load"), HasSubstr("nearest: least_loaded"));
}

TEST(PdFile, WrongValuesAreNamedWithTheirPlace) {
  json file = shipped_file();
  file["query_auth_token_enabled"] = true;
  args_of(file)["prefill_config"]["experimental_configs"]["dp_size_per_node"] = 0;
  args_of(file)["decode_config"]["model_loading_config"]["model_id"] = "other";
  args_of(file)["decode_config"]["engine_kwargs"] = "data_parallel_size";
  args_of(file)["decode_config"]["runtime_env"]["env_vars"]["X"] = json::array();
  args_of(file)["decode_config"]["deployment_config"]["autoscaling_config"] = {{"min_replicas", 1}};
  file["applications"][0]["route_prefix"] = "v1/";
  const std::string problem = problem_of(file);
  EXPECT_THAT(problem, HasSubstr("query_auth_token_enabled: "));
  EXPECT_THAT(problem, HasSubstr("dp_size_per_node 0: must be at least 1"));
  EXPECT_THAT(problem,
              HasSubstr("decode_config.model_loading_config.model_id: other here, deepseek in prefill_config"));
  EXPECT_THAT(problem, HasSubstr("decode_config.engine_kwargs: must hold keys and values"));
  EXPECT_THAT(problem, HasSubstr("decode_config.runtime_env.env_vars.X: must be text"));
  EXPECT_THAT(problem, HasSubstr("decode_config.deployment_config.autoscaling_config: "));
  EXPECT_THAT(problem, HasSubstr("route_prefix v1/: "));
}

TEST(PdFile, WhatIsMissingIsNamed) {
  json file = shipped_file();
  args_of(file).erase("decode_config");
  EXPECT_THAT(problem_of(file), HasSubstr("decode_config: missing"));
  file["applications"][0]["import_path"] = "my_builder:build";
  EXPECT_THAT(problem_of(file), HasSubstr("import_path my_builder:build: known builders: "));
  EXPECT_THAT(problem_of(json{{"applications", json::array()}}), HasSubstr("must be a list of one application"));
  EXPECT_THAT(problem_of(json("text")), HasSubstr("must hold keys and values"));
  EXPECT_THAT(problem_of(json(nullptr)), HasSubstr("must hold keys and values"));
}

TEST(PdFile, OneRoleForBothIsADeploymentOfItsOwn) {
  json file = shipped_file();
  const json both = args_of(file)["prefill_config"];
  args_of(file) = {{"llm_config", both}};
  file["applications"][0]["import_path"] = "pd_dpep_builder:build_dp_openai_app";
  file["http_options"] = {{"host", "127.0.0.1"}, {"port", 8080}};
  const auto parsed = parse_pd_file(file);
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  ASSERT_EQ(parsed->roles.size(), 1u);
  EXPECT_EQ(parsed->roles[0].role, "mixed");
  EXPECT_EQ(parsed->host, "127.0.0.1");
  EXPECT_EQ(parsed->port, 8080);
}

// ---- fit ----

RolePlan role_plan(const std::string& role, int64_t ranks) {
  RolePlan plan;
  plan.config.role = role;
  plan.config.where = role + "_config";
  plan.config.dp_size_per_node = 8;
  plan.settings.data_parallel_size = ranks;
  plan.settings.enable_expert_parallel = true;
  plan.settings.enable_eplb = true;
  plan.settings.enable_dbo = true;
  plan.settings.eplb_config.num_redundant_experts = 32;
  plan.settings.max_model_len = 16384;
  return plan;
}

std::vector<std::string> fit_lines(std::vector<RolePlan>& roles, const Machine& machine, const ModelLimits& model,
                                   int64_t num_front_doors = 1) {
  PdFile file;
  file.num_front_doors = num_front_doors;
  std::vector<std::string> lines;
  for (const auto& a : fit(file, roles, machine, model)) lines.push_back(to_string(a));
  return lines;
}

const Machine kLaptop{.num_gpus = 0, .num_cores = 2, .interfaces = {"lo"}};
const ModelLimits kTiny{.max_model_len = 4096, .num_experts = 32};
const ModelLimits kDeepseek{.max_model_len = 163840, .num_experts = 256};

TEST(Fit, ALaptopGetsTwoAndFourRanks) {
  std::vector<RolePlan> roles{role_plan("prefill", 16), role_plan("decode", 32)};
  roles[0].config.env_vars["GLOO_SOCKET_IFNAME"] = "eth0";
  roles[0].settings.socket_ifname = "eth0";
  roles[1].settings.eplb_config.num_redundant_experts = 35;
  const auto lines = fit_lines(roles, kLaptop, kTiny, 64);
  EXPECT_THAT(lines,
              ElementsAre("ingress_deployment_config replicas: 64 -> 1 (one router serves one machine)",
                          "prefill_config.data_parallel_size: 16 -> 2 (on a CPU at most 2)",
                          "prefill_config.dp_size_per_node: 8 -> 2 (must divide the 2 ranks)",
                          "prefill_config.max_model_len: 16384 -> 4096 (the model's limit)",
                          "prefill_config.GLOO_SOCKET_IFNAME: eth0 -> lo (this machine has no such interface)",
                          "decode_config.data_parallel_size: 32 -> 4 (on a CPU at most 4)",
                          "decode_config.dp_size_per_node: 8 -> 4 (must divide the 4 ranks)",
                          "decode_config.max_model_len: 16384 -> 4096 (the model's limit)",
                          "decode_config.eplb_config.num_redundant_experts: 35 -> 32 (the 32 experts and their copies "
                          "must divide by 4 ranks)"));
  EXPECT_EQ(roles[0].settings.socket_ifname, "lo");
  EXPECT_EQ(roles[0].config.env_vars.at("GLOO_SOCKET_IFNAME"), "lo");
  EXPECT_EQ(roles[1].settings.data_parallel_size, 4);
}

TEST(Fit, WhatFitsStaysAsItWasAsked) {
  std::vector<RolePlan> roles{role_plan("prefill", 16), role_plan("decode", 32)};
  const Machine big{.num_gpus = 48, .num_cores = 192, .interfaces = {"lo", "eth0"}};
  EXPECT_THAT(fit_lines(roles, big, kDeepseek), IsEmpty());
  std::vector<RolePlan> few{role_plan("prefill", 1), role_plan("decode", 2)};
  for (auto& role : few) {
    role.config.dp_size_per_node = {};
    role.settings.enable_eplb = role.settings.enable_dbo = false;
    role.settings.eplb_config.num_redundant_experts = 0;
    role.settings.max_model_len = {};
  }
  EXPECT_THAT(fit_lines(few, kLaptop, kTiny), IsEmpty());
}

TEST(Fit, GpusAreSharedOutAsAskedFor) {
  for (const auto& [gpus, prefill, decode] : {std::tuple{24, 8, 16}, {8, 2, 6}, {3, 1, 2}, {2, 1, 1}, {1, 1, 1}}) {
    std::vector<RolePlan> roles{role_plan("prefill", 16), role_plan("decode", 32)};
    fit_lines(roles, {.num_gpus = gpus, .num_cores = 8, .interfaces = {"lo"}}, kDeepseek);
    EXPECT_EQ(roles[0].settings.data_parallel_size, prefill) << gpus;
    EXPECT_EQ(roles[1].settings.data_parallel_size, decode) << gpus;
    for (const auto& role : roles) {
      EXPECT_EQ(role.settings.data_parallel_size % *role.config.dp_size_per_node, 0) << gpus;
      EXPECT_EQ((256 + role.settings.eplb_config.num_redundant_experts) % role.settings.data_parallel_size, 0) << gpus;
      EXPECT_TRUE(validate(role.settings).ok()) << validate(role.settings).error().message;
    }
  }
}

TEST(Fit, OneRankHasNothingToBalanceOrToOverlap) {
  std::vector<RolePlan> roles{role_plan("mixed", 1)};
  roles[0].config.dp_size_per_node = 1;
  const auto lines = fit_lines(roles, kLaptop, kDeepseek);
  EXPECT_THAT(lines, ElementsAre(HasSubstr("num_redundant_experts: 32 -> 0"), HasSubstr("enable_eplb: true -> false"),
                                 HasSubstr("enable_dbo: true -> false")));
}

// ---- command_line ----

TEST(CommandLine, GivesTheSettingsAgain) {
  Settings s;
  s.model = "models/tiny-v3";
  EXPECT_THAT(command_line(s), ElementsAre("models/tiny-v3"));
  s.served_model_name = {"tiny", "also tiny"};
  s.max_model_len = 4096;
  s.enable_expert_parallel = true;
  s.enable_prefix_caching = false;
  s.data_parallel_size = 4;
  s.rank_deadline_s = 2.5;
  s.all2all_backend = "deepep_low_latency";
  s.hf_overrides.text = R"({"num_hidden_layers":3})";
  s.speculative_config.method = "mtp";
  s.speculative_config.num_speculative_tokens = 1;
  s.api_key = {"secret"};
  const auto line = command_line(s);
  EXPECT_THAT(line, testing::Contains("--no-enable-prefix-caching"));
  EXPECT_THAT(line, testing::Contains("--enable-expert-parallel"));
  EXPECT_THAT(line, testing::Contains("--max-model-len=4096"));
  EXPECT_THAT(line, testing::Each(Not(HasSubstr("secret"))));
  const auto again = parse_command_line(line, {});
  ASSERT_TRUE(again.ok()) << again.error().message;
  s.api_key.clear();
  EXPECT_EQ(to_json(again->settings), to_json(s));
}

}  // namespace
}  // namespace manta::cluster
