// The command line, YAML and environment, as users type them for vLLM.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "base/settings.h"
#include "base/settings/yaml_json.h"

namespace manta {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Args = std::vector<std::string>;

ParsedSettings parse(const Args& args, const EnvMap& env = {}) {
  auto out = parse_command_line(args, env);
  EXPECT_TRUE(out.ok()) << out.error().message;
  return out.ok() ? std::move(out).value() : ParsedSettings{};
}

// The message of a command line that must be refused.
std::string refused(const Args& args, const EnvMap& env = {}) {
  auto out = parse_command_line(args, env);
  EXPECT_FALSE(out.ok()) << "was accepted";
  return out.ok() ? "" : out.error().message;
}

// A file that is gone with the test.
class TempFile {
 public:
  explicit TempFile(const std::string& text) {
    const int fd = mkstemp(path.data());
    EXPECT_GE(fd, 0);
    close(fd);
    std::ofstream(path) << text;
  }
  ~TempFile() { std::remove(path.c_str()); }
  std::string path = testing::TempDir() + "settingsXXXXXX";
};

TEST(CommandLine, Spellings) {
  for (const Args& args :
       {Args{"m", "--max-num-seqs", "8"}, Args{"m", "--max_num_seqs", "8"}, Args{"m", "--max-num_seqs=8"},
        Args{"--max_num_seqs=8", "m"}, Args{"--model", "m", "--max-num-seqs=8"},
        Args{"--model=m", "--max-num-seqs", " 8 "}, Args{"--max-num-seqs", "8", "--", "m"}}) {
    const ParsedSettings p = parse(args);
    EXPECT_EQ(p.settings.max_num_seqs, 8);
    EXPECT_EQ(p.settings.model, "m");
    EXPECT_THAT(p.notes, IsEmpty());
  }
}

TEST(CommandLine, ShortNames) {
  EXPECT_EQ(parse({"m", "-dp", "4"}).settings.data_parallel_size, 4);
  EXPECT_EQ(parse({"m", "-dp=4"}).settings.data_parallel_size, 4);
  EXPECT_EQ(parse({"m", "-asc", "3"}).settings.api_server_count, 3);
  const Settings s = parse({"m", "-sc", R"({"method":"mtp","num_speculative_tokens":1})"}).settings;
  EXPECT_EQ(s.speculative_config.method, "mtp");
  EXPECT_EQ(s.speculative_config.num_speculative_tokens, 1);
  EXPECT_EQ(parse({"m", "-sc.method=mtp"}).settings.speculative_config.method, "mtp");
  EXPECT_EQ(parse({"m", "-cc.cudagraph_mode=full"}).settings.compilation_config.cudagraph_mode, "FULL");
  EXPECT_EQ(parse({"m", "-O.mode=3"}).settings.compilation_config.mode, "3");
  EXPECT_EQ(parse({"m", "-O", R"({"level":2})"}).settings.compilation_config.mode, "2");
  EXPECT_THAT(parse({"m", "-O3"}).notes, ElementsAre(HasSubstr("no compiler at run time")));
  EXPECT_THAT(refused({"m", "-tp", "2"}), HasSubstr("tensor_parallel_size 2: manta spreads DeepSeek-V3"));
  EXPECT_THAT(parse({"m", "-tp", "1"}).notes, IsEmpty());
}

TEST(CommandLine, Booleans) {
  EXPECT_FALSE(parse({"m", "--no-enable-prefix-caching"}).settings.enable_prefix_caching);
  EXPECT_TRUE(parse({"m", "--no-enable-prefix-caching", "--enable-prefix-caching"}).settings.enable_prefix_caching);
  EXPECT_FALSE(parse({"m", "--enable-prefix-caching=false"}).settings.enable_prefix_caching);
  EXPECT_FALSE(parse({"m", "--enable_prefix_caching", "False"}).settings.enable_prefix_caching);
  EXPECT_FALSE(parse({"--async-scheduling", "false", "m"}).settings.async_scheduling);
  EXPECT_FALSE(parse({"m", "--no_batch_invariant"}).settings.batch_invariant);
  EXPECT_EQ(parse({"--async-scheduling", "m"}).settings.model, "m");
  EXPECT_THAT(refused({"m", "--enable-prefix-caching=maybe"}),
              HasSubstr("enable_prefix_caching maybe: must be true or false"));
  EXPECT_THAT(refused({"m", "--no-enable-prefix-caching=maybe"}), HasSubstr("a --no- option takes no value"));
  EXPECT_THAT(refused({"m", "--no-max-num-seqs"}), HasSubstr("only options without argument"));
}

TEST(CommandLine, Lists) {
  EXPECT_THAT(parse({"m", "--served-model-name", "a", "b", "--port", "1"}).settings.served_model_name,
              ElementsAre("a", "b"));
  EXPECT_THAT(parse({"m", "--api-key", "a", "--api-key", "b"}).settings.api_key, ElementsAre("a", "b"));
  EXPECT_THAT(parse({"m", "--served-model-name", R"(["a","b"])"}).settings.served_model_name, ElementsAre("a", "b"));
  EXPECT_THAT(parse({"m", "--cuda-graph-sizes", "1", "2"}).settings.compilation_config.cudagraph_capture_sizes,
              ElementsAre(1, 2));
  EXPECT_THAT(refused({"m", "--served-model-name"}), HasSubstr("--served-model-name: needs at least one value"));
}

TEST(CommandLine, Sizes) {
  const auto len = [](const char* text) { return parse({"m", "--max-model-len", text}).settings.max_model_len; };
  EXPECT_EQ(len("16384"), 16384);
  EXPECT_EQ(len("16k"), 16000);
  EXPECT_EQ(len("16K"), 16384);
  EXPECT_EQ(len("25.6k"), 25600);
  EXPECT_EQ(len("1m"), 1000000);
  EXPECT_EQ(len("1M"), 1048576);
  EXPECT_EQ(parse({"m", "--kv-cache-memory-bytes", "2G"}).settings.kv_cache_memory_bytes, int64_t{2} << 30);
  EXPECT_THAT(refused({"m", "--max-model-len", "16q"}), HasSubstr("max_model_len 16q: must be an integer"));
  EXPECT_THAT(refused({"m", "--max-model-len", "1.5"}), HasSubstr("must be an integer"));
  EXPECT_THAT(refused({"m", "--max-model-len", "k"}), HasSubstr("must be an integer"));
  EXPECT_THAT(refused({"m", "--max-model-len", "99999999999999999999"}), HasSubstr("does not fit in 64 bits"));
  EXPECT_THAT(refused({"m", "--kv-cache-memory-bytes", "99999999T"}), HasSubstr("does not fit in 64 bits"));
  EXPECT_THAT(refused({"m", "--port", "8k"}), HasSubstr("port 8k: must be an integer"));
  EXPECT_THAT(refused({"m", "--max-model-len", "auto"}), HasSubstr("max_model_len auto: not in this version yet"));
  EXPECT_THAT(refused({"m", "--max-model-len", "-1"}), HasSubstr("max_model_len -1: not in this version yet"));
}

TEST(CommandLine, BoundsNameValueAndBound) {
  EXPECT_THAT(refused({"m", "--max-num-seqs", "0"}), HasSubstr("max_num_seqs 0: must be between 1 and 65536"));
  EXPECT_THAT(refused({"m", "--max-model-len", "0"}), HasSubstr("max_model_len 0: must be between 1 and 2147483647"));
  EXPECT_THAT(refused({"m", "--port", "70000"}), HasSubstr("port 70000: must be between 0 and 65535"));
  EXPECT_THAT(refused({"m", "--rank-deadline-s", "0"}), HasSubstr("rank_deadline_s 0: must be between 0.1 and 3600"));
  EXPECT_THAT(refused({"m", "--rank-deadline-s", "nan"}), HasSubstr("must be a number"));
  EXPECT_THAT(refused({"m", "--cuda-graph-sizes", "4", "0"}), HasSubstr("must be at least 1"));
  EXPECT_THAT(refused({"m", "--scheduling-policy", "lifo"}),
              HasSubstr("scheduling_policy lifo: must be one of fcfs, priority"));
  EXPECT_THAT(refused({"m", "--dtype", "float16"}), HasSubstr("dtype float16: "));
  EXPECT_EQ(parse({"m", "--seed", "-5"}).settings.seed, -5);
}

TEST(CommandLine, AllProblemsAtOnce) {
  const std::string message = refused({"m", "--port", "70000", "--max-num-seq", "5", "--block-size", "x", "extra"});
  EXPECT_THAT(message, HasSubstr("port 70000"));
  EXPECT_THAT(message, HasSubstr("--max-num-seq: unknown option; nearest: --max-num-seqs"));
  EXPECT_THAT(message, HasSubstr("block_size x: must be an integer"));
  EXPECT_THAT(message, HasSubstr("\"extra\": unexpected"));
}

TEST(CommandLine, UnknownOptions) {
  EXPECT_THAT(refused({"m", "--eplb-config.windw_size", "5"}),
              HasSubstr("--eplb-config.windw_size: unknown option; nearest: --eplb-config.window_size"));
  EXPECT_THAT(refused({"m", "--eplb-config", R"({"windows":1})"}), HasSubstr("nearest: --eplb-config.window_size"));
  EXPECT_THAT(refused({"m", "-zz"}), HasSubstr("unknown option"));
  EXPECT_THAT(refused({"m", "--port.x", "5"}), HasSubstr("unknown option"));
  EXPECT_THAT(refused({"m", "--port"}), HasSubstr("--port: needs a value"));
  EXPECT_THAT(refused({"m", "--port", "--uds", "x"}), HasSubstr("--port: needs a value"));
  EXPECT_THAT(refused({"m", "--eplb-config", "5"}), HasSubstr("eplb_config 5: must be a JSON object"));
  EXPECT_THAT(refused({"m", "--eplb-config", "{"}), HasSubstr("must be a JSON object"));
  EXPECT_THAT(refused({}), HasSubstr("model: not given"));
}

TEST(CommandLine, ObjectsInEveryForm) {
  const Settings s =
      parse({"m", "--eplb-config", R"({"window_size":"100","step_interval":200,"log_balancedness":"False",
                            "use_async":"true"})",
             "--eplb-config.step-interval=300", "--eplb_config.min_gain", "0.5"})
          .settings;
  EXPECT_EQ(s.eplb_config.window_size, 100);
  EXPECT_EQ(s.eplb_config.step_interval, 300);
  EXPECT_FALSE(s.eplb_config.log_balancedness);
  EXPECT_TRUE(s.eplb_config.use_async);
  EXPECT_EQ(s.eplb_config.min_gain, 0.5);
}

TEST(CommandLine, AppendsToLists) {
  const auto ops = [](const Args& args) { return parse(args).settings.compilation_config.custom_ops; };
  EXPECT_THAT(ops({"m", "--compilation-config.custom_ops+", "+rms_norm"}), ElementsAre("+rms_norm"));
  EXPECT_THAT(ops({"m", "--compilation-config.custom_ops+=-rms_norm"}), ElementsAre("-rms_norm"));
  EXPECT_THAT(ops({"m", "--compilation-config.custom_ops+", "-rms_norm"}), ElementsAre("-rms_norm"));
  EXPECT_THAT(ops({"m", "-cc.custom_ops+=a,b", "-cc.custom_ops+=c"}), ElementsAre("a", "b", "c"));
  EXPECT_THAT(ops({"m", "-cc", R"({"custom_ops":["a"]})", "-cc.custom_ops+=b"}), ElementsAre("a", "b"));
  EXPECT_THAT(refused({"m", "--port+", "5"}), HasSubstr("--port+: not a list"));
  EXPECT_THAT(refused({"m", "--compilation-config.custom_ops+"}), HasSubstr("needs a value"));
}

TEST(CommandLine, JsonOfOthersKeepsItsKeys) {
  const Settings s =
      parse({"m", "--hf-overrides", R"({"q_lora_rank":null,"rope-x":{"a":1}})", "--hf-overrides.rope-x.b", "2",
             "--hf-overrides.name", "text", "--hf-overrides.list+", "1,two"})
          .settings;
  EXPECT_EQ(s.hf_overrides.text, R"({"list":[1,"two"],"name":"text","q_lora_rank":null,"rope-x":{"a":1,"b":2}})");
  EXPECT_THAT(refused({"m", "--hf-overrides", "[1]"}), HasSubstr("must be a JSON object"));
}

TEST(CommandLine, OldNamesAreMappedAndSaid) {
  const ParsedSettings p =
      parse({"m", "--compilation-config",
             R"({"pass_config":{"enable_fusion":true,"enable_attn_fusion":"true","enable_noop":false}})"});
  const auto& pass = p.settings.compilation_config.pass_config;
  EXPECT_EQ(pass.fuse_norm_quant, true);
  EXPECT_EQ(pass.fuse_act_quant, true);
  EXPECT_EQ(pass.fuse_attn_quant, true);
  EXPECT_EQ(pass.eliminate_noops, false);
  EXPECT_THAT(p.notes, Contains(HasSubstr("enable_fusion: another vLLM version's name; taken as "
                                          "compilation_config.pass_config.fuse_norm_quant and "
                                          "compilation_config.pass_config.fuse_act_quant")));
  EXPECT_TRUE(parse({"m", "--disable-log-requests"}).settings.enable_log_requests == false);
  EXPECT_TRUE(parse({"m", "--no-disable-log-requests"}).settings.enable_log_requests);
  EXPECT_EQ(parse({"m", "--eplb-window-size", "7"}).settings.eplb_config.window_size, 7);
  EXPECT_EQ(
      parse({"m", "--spec-method", "mtp", "--spec-tokens", "2"}).settings.speculative_config.num_speculative_tokens, 2);
}

TEST(CommandLine, NotedOptionsSaySo) {
  const ParsedSettings p = parse({"m", "--swap-space", "4", "--trust-remote-code", "--gpu-memory-utilization", "0.9",
                                  "--no-calculate-kv-scales", "--limit-mm-per-prompt", R"({"image":0})"});
  EXPECT_THAT(p.notes, Contains(HasSubstr("swap_space: preempted requests are recomputed")));
  EXPECT_THAT(p.notes, Contains(HasSubstr("trust_remote_code: no Python")));
  EXPECT_THAT(p.notes, Contains(HasSubstr("gpu_memory_utilization: plans GPU memory")));
  EXPECT_THAT(p.notes, Not(Contains(HasSubstr("calculate_kv_scales"))));
  EXPECT_EQ(p.settings.gpu_memory_utilization, 0.9);
}

TEST(CommandLine, RefusedOptionsGiveTheReasonAndOnlyWhenOn) {
  EXPECT_THAT(refused({"m", "--enable-lora"}), HasSubstr("enable_lora: LoRA adapters are not supported"));
  EXPECT_THAT(refused({"m", "--enable-lora", "--max-loras", "4"}), HasSubstr("enable_lora, max_loras: LoRA"));
  EXPECT_THAT(refused({"m", "--enable-dbo"}), HasSubstr("enable_dbo: needs data_parallel_size above 1"));
  EXPECT_THAT(refused({"m", "-dp", "2", "--enable-dbo"}), HasSubstr("enable_dbo: needs enable_expert_parallel"));
  parse({"m", "--no-enable-lora", "--no-enable-dbo", "--enable-eplb=false", "--pipeline-parallel-size", "1"});
  parse({"m", "--watermark", "0.0", "--quantization", "FP8"});
  const auto out = parse_command_line(Args{"m", "--enable-lora"}, {});
  EXPECT_EQ(out.error().code, ErrorCode::kUnimplemented);
}

TEST(CommandLine, GivenTwice) {
  const ParsedSettings p = parse({"m", "--port", "1", "--port", "2"});
  EXPECT_EQ(p.settings.port, 2);
  EXPECT_THAT(p.notes, ElementsAre("port: given twice; 2 is used"));
}

TEST(CommandLine, NoEffectWithoutItsSwitch) {
  EXPECT_THAT(parse({"m", "--dbo-decode-token-threshold", "64"}).notes,
              ElementsAre("dbo_decode_token_threshold: no effect without enable_dbo"));
  EXPECT_THAT(parse({"m", "--dbo-decode-token-threshold", "32"}).notes, IsEmpty());
  EXPECT_THAT(parse({"m", "--fake-script", "hi", "--executor", "fake"}).notes, IsEmpty());
}

TEST(CommandLine, HelpWinsOverEverything) {
  const ParsedSettings p = parse({"--port", "x", "--help"});
  ASSERT_TRUE(p.help.has_value());
  EXPECT_THAT(*p.help, HasSubstr("usage: manta serve MODEL"));
  EXPECT_THAT(*parse({"--help=eplb"}).help, HasSubstr("--enable-eplb"));
}

TEST(Environment, FlagsWinOverFileOverVariables) {
  const TempFile file("max_num_seqs: 20\nport: 30\n");
  const EnvMap env = {{"VLLM_API_KEY", "k"}, {"VLLM_LOGGING_LEVEL", "DEBUG"}, {"VLLM_DP_SIZE", "2"}};
  const ParsedSettings p = parse({"m", "--config", file.path, "--port", "31", "-dp", "3"}, env);
  EXPECT_EQ(p.settings.max_num_seqs, 20);
  EXPECT_EQ(p.settings.port, 31);
  EXPECT_EQ(p.settings.data_parallel_size, 3);
  EXPECT_EQ(p.settings.log_level, "debug");
  EXPECT_THAT(p.settings.api_key, ElementsAre("k"));
  EXPECT_EQ(to_string(p.origins.at("max_num_seqs")), file.path);
  EXPECT_EQ(to_string(p.origins.at("port")), "command line");
  EXPECT_EQ(to_string(p.origins.at("log_level")), "environment VLLM_LOGGING_LEVEL");
  EXPECT_FALSE(p.origins.contains("block_size"));
  const auto changed = changed_settings(p);
  EXPECT_THAT(changed, Contains("port=31 (command line)"));
  EXPECT_THAT(changed, Contains("api_key=*** (environment VLLM_API_KEY)"));
}

TEST(Environment, MantaNameWinsAndEmptyIsUnset) {
  EXPECT_EQ(parse({"m"}, {{"VLLM_LOGGING_LEVEL", "debug"}, {"MANTA_LOG_LEVEL", "error"}}).settings.log_level, "error");
  EXPECT_EQ(parse({"m"}, {{"VLLM_LOGGING_LEVEL", "debug"}, {"MANTA_LOG_LEVEL", ""}}).settings.log_level, "debug");
}

TEST(Environment, ErrorsNameTheVariable) {
  EXPECT_THAT(refused({"m"}, {{"VLLM_DP_SIZE", "0"}}),
              HasSubstr("data_parallel_size 0: must be between 1 and 1024 (environment VLLM_DP_SIZE)"));
  EXPECT_THAT(refused({"m"}, {{"VLLM_SERVER_DEV_MODE", "1"}}), HasSubstr("VLLM_SERVER_DEV_MODE: not in this version"));
  parse({"m"}, {{"VLLM_SERVER_DEV_MODE", "0"}});
  // A flag that replaces the variable's bad value is enough.
  EXPECT_EQ(parse({"m", "-dp", "1"}, {{"VLLM_DP_SIZE", "0"}}).settings.data_parallel_size, 1);
}

TEST(Environment, UnknownNamesOfOursAreNotedOthersAreNotOurs) {
  const ParsedSettings p = parse({"m"}, {{"VLLM_USE_DEEP_GEM", "1"},
                                         {"MANTA_XYZZY", "1"},
                                         {"PATH", "/bin"},
                                         {"PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"}});
  EXPECT_THAT(p.notes, testing::UnorderedElementsAre(
                           "VLLM_USE_DEEP_GEM: not known to manta, no effect; nearest: VLLM_USE_DEEP_GEMM",
                           "MANTA_XYZZY: not known to manta, no effect",
                           "PYTORCH_CUDA_ALLOC_CONF: manta has no PyTorch allocator; memory is planned up front"));
}

TEST(ConfigFile, NestedKeysAndErrors) {
  const TempFile file(
      "model: some/model\nserved-model-name: [a, b]\nmax-model-len: 16k\nno-enable-prefix-caching: true\n"
      "eplb_config:\n  window_size: 10\n  log_balancedness: 'False'\ntool_call_parser: deepseek_v3\n"
      "speculative_config: '{\"method\": \"mtp\"}'\napi_server_count: null\n");
  const ParsedSettings p = parse({"--config", file.path, "--eplb-config.window_size", "20"});
  EXPECT_EQ(p.settings.model, "some/model");
  EXPECT_THAT(p.settings.served_model_name, ElementsAre("a", "b"));
  EXPECT_EQ(p.settings.max_model_len, 16000);
  EXPECT_FALSE(p.settings.enable_prefix_caching);
  EXPECT_EQ(p.settings.eplb_config.window_size, 20);
  EXPECT_FALSE(p.settings.eplb_config.log_balancedness);
  EXPECT_EQ(p.settings.speculative_config.method, "mtp");
  EXPECT_FALSE(p.settings.api_server_count.has_value());

  const TempFile bad("max_num_seq: 5\neplb_config: {window: 3}\nport: 99999\n");
  const std::string message = refused({"m", "--config", bad.path});
  EXPECT_THAT(message, HasSubstr("max_num_seq: unknown key (" + bad.path + "); nearest: max_num_seqs"));
  EXPECT_THAT(message, HasSubstr("port 99999: must be between 0 and 65535 (" + bad.path + ")"));
  const TempFile broken("a: [1\nb: 2\n");
  EXPECT_THAT(refused({"m", "--config", broken.path}), HasSubstr(broken.path + ": line "));
  const TempFile list("- a\n");
  EXPECT_THAT(refused({"m", "--config", list.path}), HasSubstr("must hold keys and values"));
  EXPECT_THAT(refused({"m", "--config", "no/such/file.yaml"}), HasSubstr("no/such/file.yaml: cannot be read"));
  EXPECT_THAT(refused({"m", "--config", file.path, "--config", file.path}), HasSubstr("--config: given twice"));
}

TEST(Yaml, ScalarsFollowTheCoreSchema) {
  const auto out = settings::yaml_to_json(
      "{a: 1, b: -2.5, c: true, d: 'true', e: \"1\", f: null, g: ~, h: text, i: 1e3, j: 0x10, k: inf, l: [x, 2]}");
  ASSERT_TRUE(out.ok()) << out.error().message;
  EXPECT_EQ(out->dump(), R"({"a":1,"b":-2.5,"c":true,"d":"true","e":"1","f":null,"g":null,"h":"text","i":1000.0,)"
                         R"("j":"0x10","k":"inf","l":["x",2]})");
}

TEST(Yaml, RefusesWhatWouldSurprise) {
  const auto message = [](const std::string& text) {
    const auto out = settings::yaml_to_json(text);
    return out.ok() ? "accepted" : out.error().message;
  };
  EXPECT_THAT(message("a: 1\nb: 2\na: 3\n"), HasSubstr("line 3, column 1: key \"a\" is given twice"));
  EXPECT_THAT(message("{[1]: 2}"), HasSubstr("a key must be a plain word"));
  std::string bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n";
  for (char c = 'b'; c < 'j'; ++c) {
    bomb += std::string(1, c) + ": &" + c + " [";
    for (int i = 0; i < 10; ++i) bomb += std::string(i ? ",*" : "*") + static_cast<char>(c - 1);
    bomb += "]\n";
  }
  EXPECT_THAT(message(bomb), HasSubstr("more than 100000 nodes"));
  EXPECT_THAT(message(std::string(100, '[') + std::string(100, ']')), HasSubstr("nested deeper than 64"));
}

TEST(Kwargs, SameTableAsTheCommandLine) {
  const auto kwargs = nlohmann::json::parse(R"({"max_model_len": 16384, "max_num_seqs": 512, "tensor_parallel_size": 1,
      "enable_prefix_caching": false, "dbo_decode_token_threshold": 32,
      "eplb_config": {"window_size": 1000, "step_interval": 3000, "log_balancedness": false},
      "compilation_config": {"pass_config": {"enable_fusion": true}, "custom_ops": ["+rms_norm"],
                             "cudagraph_mode": "FULL_DECODE_ONLY"}})");
  const auto out = settings_from_kwargs(kwargs, {}, "pd.yaml decode");
  ASSERT_TRUE(out.ok()) << out.error().message;
  EXPECT_EQ(out->settings.max_num_seqs, 512);
  EXPECT_EQ(out->settings.compilation_config.cudagraph_mode, "FULL_DECODE_ONLY");
  EXPECT_EQ(to_string(out->origins.at("max_num_seqs")), "pd.yaml decode");
  const auto bad = settings_from_kwargs({{"max_num_seqz", 1}}, {}, "pd.yaml decode");
  ASSERT_FALSE(bad.ok());
  EXPECT_EQ(bad.error().message, "max_num_seqz: unknown key (pd.yaml decode); nearest: max_num_seqs");
  EXPECT_FALSE(settings_from_kwargs(nlohmann::json::array(), {}, "x").ok());
}

TEST(Together, WhatNeedsOrExcludesEachOther) {
  EXPECT_THAT(refused({"m", "--enable-auto-tool-choice"}),
              HasSubstr("enable_auto_tool_choice: needs tool_call_parser"));
  parse({"m", "--enable-auto-tool-choice", "--tool-call-parser", "deepseek_v3"});
  EXPECT_THAT(refused({"m", "--max-num-batched-tokens", "100", "--max-num-seqs", "200"}),
              HasSubstr("max_num_batched_tokens 100: must be at least max_num_seqs (200)"));
  EXPECT_THAT(
      refused({"m", "--max-num-batched-tokens", "1000", "--max-model-len", "2000", "--no-enable-chunked-prefill"}),
      HasSubstr("must be at least max_model_len (2000)"));
  EXPECT_THAT(refused({"m", "--ssl-keyfile", "k"}), HasSubstr("ssl_keyfile: needs ssl_certfile"));
  EXPECT_THAT(refused({"m", "--ssl-cert-reqs", "2", "--ssl-keyfile", "k", "--ssl-certfile", "c"}),
              HasSubstr("needs ssl_ca_certs"));
  EXPECT_THAT(refused({"m", "--uds", "a", "--host", "b"}), HasSubstr("uds: excludes host"));
  EXPECT_THAT(refused({"m", "-dpl", "3", "-dp", "2"}),
              HasSubstr("data_parallel_size_local 3: must be at most data_parallel_size (2)"));
  EXPECT_THAT(refused({"m", "-dpe", "-dp", "2"}), HasSubstr("needs data_parallel_rank"));
  EXPECT_THAT(refused({"m", "-dpl", "0", "-dp", "2", "--headless"}), HasSubstr("leaves this node nothing to do"));
  EXPECT_THAT(refused({"m", "--coordinator", "head:29550"}), HasSubstr("must be tcp:HOST:PORT"));
  EXPECT_THAT(refused({"m", "--eplb-config.num_redundant_experts", "4"}), HasSubstr("needs enable_eplb"));
  EXPECT_THAT(refused({"m", "-sc.num_speculative_tokens", "1"}), HasSubstr("needs a method"));
}

// The same checks for rows that the command line still refuses, straight on the struct.
TEST(Together, RanksLieInsideTheDeployment) {
  const auto message = [](auto change) {
    Settings s;
    s.data_parallel_size = 4;
    change(s);
    const Status status = validate(s);
    return status.ok() ? std::string("fine") : status.error().message;
  };
  EXPECT_EQ(message([](Settings&) {}), "fine");
  EXPECT_THAT(message([](Settings& s) { s.data_parallel_start_rank = 2; }),
              HasSubstr("needs data_parallel_size_local"));
  EXPECT_THAT(message([](Settings& s) {
                s.data_parallel_start_rank = 3;
                s.data_parallel_size_local = 2;
              }),
              HasSubstr("data_parallel_start_rank 3: with data_parallel_size_local 2 must stay below"));
  EXPECT_THAT(message([](Settings& s) { s.data_parallel_rank = 4; }),
              HasSubstr("data_parallel_rank 4: must be less than"));
  EXPECT_THAT(message([](Settings& s) { s.data_parallel_hybrid_lb = true; }),
              HasSubstr("needs data_parallel_size_local"));
  EXPECT_THAT(message([](Settings& s) { s.enable_eplb = true; }), HasSubstr("needs enable_expert_parallel"));
  EXPECT_THAT(message([](Settings& s) { s.kv_transfer_config.kv_connector = "NixlConnector"; }),
              HasSubstr("needs kv_role"));
}

TEST(Derived, StepLimitFollowsTheOthers) {
  const ParsedSettings p = parse({"m", "--max-num-seqs", "4096"});
  EXPECT_EQ(p.settings.max_num_batched_tokens, 4096);
  EXPECT_THAT(p.notes, ElementsAre("max_num_batched_tokens: raised to 4096 for max_num_seqs"));
  EXPECT_EQ(parse({"m", "--max-model-len", "9000", "--no-enable-chunked-prefill"}).settings.max_num_batched_tokens,
            9000);
  EXPECT_EQ(parse({"m", "--max-model-len", "9000"}).settings.max_num_batched_tokens, 2048);
}

constexpr const char* kCompilationConfig = R"({
  "pass_config": {"enable_fusion": true, "enable_attn_fusion": true, "enable_noop": true},
  "custom_ops": ["+rms_norm"],
  "cudagraph_mode": "FULL_DECODE_ONLY"})";

// The standalone command that users of vLLM's wide-EP set-up run today, with its variables, word for word.
struct WideEp {
  EnvMap env = {{"VLLM_USE_DEEP_GEMM", "1"},
                {"VLLM_ALL2ALL_BACKEND", "deepep_low_latency"},
                {"VLLM_MOE_DP_CHUNK_SIZE", "512"},
                {"VLLM_SKIP_P2P_CHECK", "1"},
                {"VLLM_RANDOMIZE_DP_DUMMY_INPUTS", "1"},
                {"NVIDIA_GDRCOPY", "enabled"},
                {"PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"},
                {"VLLM_MOE_ROUTING_SIMULATION_STRATEGY", "uniform_random"},
                {"NVSHMEM_QP_DEPTH", "1512"},
                {"GLOO_SOCKET_IFNAME", "eth0"}};
  Args args = {
      "deepseek-ai/DeepSeek-V3-0324",
      "--data-parallel-hybrid-lb",
      "--api-server-count",
      "8",
      "--data-parallel-address",
      "10.0.0.1",
      "--data-parallel-rpc-port",
      "29551",
      "--tensor-parallel-size",
      "1",
      "--data-parallel-size",
      "32",
      "--data-parallel-size-local",
      "8",
      "--data-parallel-start-rank",
      "8",
      "--enable-expert-parallel",
      "--no-enable-prefix-caching",
      "--max-model-len",
      "16384",
      "--enable-dbo",
      "--dbo-decode-token-threshold",
      "32",
      "--async-scheduling",
      "--enable-eplb",
      "--eplb-config",
      R"({"window_size":"1000","step_interval":"3000","num_redundant_experts":"32","log_balancedness":"False"})",
      "--max-num-seqs",
      "512",
      "--compilation_config",
      kCompilationConfig,
      "--kv-transfer-config",
      R"({"kv_connector":"NixlConnector", "kv_role":"kv_both"})"};
};

TEST(WideEpCommand, IsTakenWordForWord) {
  const WideEp command;
  const ParsedSettings p = parse(command.args, command.env);
  const Settings& s = p.settings;
  EXPECT_EQ(s.model, "deepseek-ai/DeepSeek-V3-0324");
  EXPECT_EQ(s.api_server_count, 8);
  EXPECT_EQ(s.data_parallel_size, 32);
  EXPECT_EQ(s.data_parallel_size_local, 8);
  EXPECT_EQ(s.data_parallel_start_rank, 8);
  EXPECT_TRUE(s.data_parallel_hybrid_lb);
  EXPECT_EQ(s.data_parallel_rpc_port, 29551);
  EXPECT_EQ(s.socket_ifname, "eth0");
  EXPECT_TRUE(s.enable_expert_parallel);
  EXPECT_TRUE(s.enable_dbo);
  EXPECT_FALSE(s.enable_prefix_caching);
  EXPECT_EQ(s.max_model_len, 16384);
  EXPECT_TRUE(s.async_scheduling);
  EXPECT_EQ(s.eplb_config.window_size, 1000);
  EXPECT_EQ(s.eplb_config.step_interval, 3000);
  EXPECT_EQ(s.eplb_config.num_redundant_experts, 32);
  EXPECT_FALSE(s.eplb_config.log_balancedness);
  EXPECT_TRUE(s.enable_eplb);
  EXPECT_EQ(s.kv_transfer_config.kv_connector, "NixlConnector");
  EXPECT_EQ(s.kv_transfer_config.kv_role, "kv_both");
  EXPECT_EQ(s.max_num_seqs, 512);
  EXPECT_EQ(s.compilation_config.pass_config.fuse_norm_quant, true);
  EXPECT_THAT(s.compilation_config.custom_ops, ElementsAre("+rms_norm"));
  EXPECT_EQ(s.compilation_config.cudagraph_mode, "FULL_DECODE_ONLY");
  EXPECT_EQ(s.all2all_backend, "deepep_low_latency");
  EXPECT_EQ(s.moe_dp_chunk_size, 512);
  for (const char* name : {"VLLM_USE_DEEP_GEMM", "VLLM_SKIP_P2P_CHECK", "NVIDIA_GDRCOPY", "PYTORCH_CUDA_ALLOC_CONF",
                           "NVSHMEM_QP_DEPTH", "randomize_dp_dummy_inputs"})
    EXPECT_THAT(p.notes, Contains(HasSubstr(name)));
}

// Any words: an error or settings, never a crash. Real option names and hostile values, so that the depths are reached.
TEST(CommandLine, AnyWordsAreAnswered) {
  const Args words = {"m",
                      "--",
                      "-",
                      "--port",
                      "-O",
                      "-O9",
                      "--eplb-config",
                      "{",
                      "{}",
                      R"({"a":{"b":[1]}})",
                      "--no-",
                      "--=",
                      "--x=y",
                      "--hf-overrides.a.b+",
                      "--hf-overrides",
                      "-1",
                      "1e999",
                      "k",
                      "--compilation-config.custom_ops+=,,",
                      "--config",
                      "/dev/null",
                      "--api-key",
                      "\xff\xfe",
                      std::string(20000, '['),
                      "--hf-overrides." + std::string(1000, '.'),
                      "--max-model-len",
                      "--no-no-no",
                      "--disable-log-requests=x",
                      "-dp=",
                      "--speculative-config.method",
                      "--eplb-config.window_size+",
                      "1"};
  std::mt19937 random(1);
  for (int round = 0; round < 3000; ++round) {
    Args args;
    for (unsigned n = random() % 6; n > 0; --n) args.push_back(words[random() % words.size()]);
    const auto out = parse_command_line(args, {});
    if (!out.ok()) {
      ASSERT_FALSE(out.error().message.empty());
    } else if (!out->help) {
      const auto back = settings_from_json(to_json(out->settings));
      ASSERT_TRUE(back.ok() && *back == out->settings);
    }
  }
}

}  // namespace
}  // namespace manta
