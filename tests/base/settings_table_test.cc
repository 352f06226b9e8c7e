// The table itself: every option and variable of vLLM 0.11.2 and 0.33.0 has an answer, and the docs page is its print.
#include "base/settings/table.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "base/settings.h"
#include "base/settings/attributes.h"
#include "base/settings/value.h"

namespace manta::settings {
namespace {

// As `vllm serve --help=all` of both versions lists them.
constexpr const char* kFlagsOfBoth =
    "additional-config aggregate-engine-logging all2all-backend allow-credentials allowed-headers "
    "allowed-local-media-path allowed-media-domains allowed-methods allowed-origins api-key api-server-count "
    "async-scheduling block-size chat-template chat-template-content-format code-revision collect-detailed-traces "
    "compilation-config config config-format convert cpu-offload-gb cudagraph-capture-sizes data-parallel-address "
    "data-parallel-backend data-parallel-external-lb data-parallel-hybrid-lb data-parallel-rank "
    "data-parallel-rpc-port data-parallel-size data-parallel-size-local data-parallel-start-rank "
    "dbo-decode-token-threshold dbo-prefill-token-threshold dcp-kv-cache-interleave-size "
    "decode-context-parallel-size default-mm-loras disable-cascade-attn disable-chunked-mm-input "
    "disable-custom-all-reduce disable-fastapi-docs disable-hybrid-kv-cache-manager disable-log-stats "
    "disable-nccl-for-dp-synchronization disable-sliding-window disable-uvicorn-access-log "
    "distributed-executor-backend download-dir dtype ec-transfer-config enable-auto-tool-choice "
    "enable-chunked-prefill enable-dbo enable-eplb enable-expert-parallel enable-force-include-usage "
    "enable-log-outputs enable-log-requests enable-lora enable-mm-embeds enable-prefix-caching "
    "enable-prompt-embeds enable-prompt-tokens-details enable-request-id-headers enable-server-load-tracking "
    "enable-sleep-mode enable-ssl-refresh enable-tokenizer-info-endpoint enforce-eager eplb-config "
    "exclude-tools-when-tool-choice-none expert-placement-strategy fully-sharded-loras generation-config "
    "gpu-memory-utilization h11-max-header-count h11-max-incomplete-event-size headless hf-config-path "
    "hf-overrides hf-token host ignore-patterns interleave-mm-strings io-processor-plugin kv-cache-dtype "
    "kv-cache-memory-bytes kv-events-config kv-offloading-backend kv-offloading-size kv-sharing-fast-prefill "
    "kv-transfer-config limit-mm-per-prompt load-format log-config-file log-error-stack logits-processors "
    "logprobs-mode long-prefill-token-threshold lora-dtype lora-modules mamba-block-size mamba-cache-dtype "
    "mamba-ssm-cache-dtype master-addr master-port max-cpu-loras max-cudagraph-capture-size max-log-len "
    "max-logprobs max-lora-rank max-loras max-model-len max-num-batched-tokens max-num-seqs "
    "max-parallel-loading-workers media-io-kwargs middleware mm-encoder-attn-backend mm-encoder-tp-mode "
    "mm-processor-cache-gb mm-processor-cache-type mm-processor-kwargs mm-shm-cache-max-object-size-mb model "
    "model-impl model-loader-extra-config nnodes node-rank num-gpu-blocks-override otlp-traces-endpoint "
    "override-generation-config pipeline-parallel-size pooler-config port prefix-caching-hash-algo "
    "pt-load-map-location quantization ray-workers-use-nsight reasoning-parser reasoning-parser-plugin "
    "response-role return-tokens-as-token-ids revision root-path runner safetensors-load-strategy scheduler-cls "
    "scheduling-policy seed served-model-name show-hidden-metrics-for-version skip-mm-profiling "
    "skip-tokenizer-init speculative-config ssl-ca-certs ssl-cert-reqs ssl-certfile ssl-keyfile stream-interval "
    "structured-outputs-config tensor-parallel-size tokenizer tokenizer-mode tokenizer-revision tokens-only "
    "tool-call-parser tool-parser-plugin tool-server trust-remote-code trust-request-chat-template uds "
    "use-tqdm-on-load uvicorn-log-level video-pruning-rate worker-cls worker-extension-cls";

constexpr const char* kFlagsOf011 =
    "calculate-kv-scales cuda-graph-sizes disable-frontend-multiprocessing disable-log-requests "
    "disable-mm-preprocessor-cache enable-multimodal-encoder-data-parallel eplb-log-balancedness "
    "eplb-step-interval eplb-window-size logits-processor-pattern lora-extra-vocab-size max-long-partial-prefills "
    "max-num-partial-prefills num-lookahead-slots num-redundant-experts override-attention-dtype "
    "override-pooler-config swap-space task";

constexpr const char* kFlagsOf033 =
    "allow-deprecated-quantization anthropic-disabled-thinking-effort attention-backend attention-config "
    "aux-output-config cohere-format cohere-is-reasoning-model cp-kv-cache-interleave-size "
    "cpu-distributed-timeout-seconds cpu-offload-params cudagraph-metrics custom-histogram-buckets "
    "data-parallel-multi-port-external-lb data-parallel-supervisor-port dcp-comm-backend dcp-q-replicate "
    "default-chat-template-kwargs device-ids device-memory-utilization diffusion-config "
    "disable-access-log-for-endpoints distributed-timeout-seconds dp-supervisor-probe-failure-threshold "
    "dp-supervisor-probe-interval-s dp-supervisor-probe-timeout-s dp-sync-interval ec-manager-config "
    "elastic-ep-max-dp-size enable-batch-sharded-sampling enable-cumem-allocator enable-elastic-ep "
    "enable-ep-weight-filter enable-fault-tolerance enable-flash-late-interaction enable-flashinfer-autotune "
    "enable-hc-sp enable-layerwise-nvtx-tracing enable-log-deltas enable-logging-iteration-details "
    "enable-mamba-cache-stochastic-rounding enable-mamba-shared-prefix-checkpoint enable-mfu-metrics "
    "enable-mixed-moe-lora-format enable-moe-shared-loras enable-nccl-comm-suspend enable-offline-docs "
    "enable-per-request-metrics enable-return-routed-experts enable-scale-out enable-shm-tensor-arena "
    "enable-tower-connector-lora enable-trace-replay engram-config fail-on-environ-validation "
    "fault-tolerance-config fingerprint-mode fingerprint-value gdn-prefill-backend grpc grpc-port ir-op-priority "
    "jit-monitor-mode jit-monitor-verbose kda-decode-backend kda-prefill-backend kernel-config "
    "kv-cache-dtype-skip-layers kv-cache-metrics kv-cache-metrics-sample language-model-only linear-backend "
    "log-level logging-config long-prefill-token-threshold-adaptive lora-target-modules mamba-backend "
    "mamba-cache-mode mamba-cache-philox-rounds mamba-ssu-algorithm max-lora-cls-labels max-num-active-seqs "
    "max-num-queued-reqs max-num-queued-tokens max-num-scheduled-tokens mm-device-do-normalize "
    "mm-encoder-attn-dtype mm-encoder-fp8-scale-path mm-encoder-fp8-scale-save-margin "
    "mm-encoder-fp8-scale-save-path mm-encoder-only mm-hasher-algorithm mm-ipc-gpu-memory-gb mm-processor-device "
    "mm-tensor-ipc model-class-overrides moe-backend monokernel numa-bind numa-bind-cpus numa-bind-nodes "
    "offload-backend offload-group-size offload-num-in-group offload-params offload-prefetch-step "
    "optimization-level per-request-spec-decode-metrics performance-mode prefill-context-parallel-size "
    "prefill-schedule-interval prefix-cache-retention-interval prefix-match-unit profiler-config "
    "quantization-config reasoning-config reasoning-effort-map renderer-num-workers replayssm-buffer-len "
    "return-sampling-mask safetensors-prefetch-block-size safetensors-prefetch-num-threads "
    "scheduler-reserve-full-isl shutdown-timeout sleep-mode-backend sleep-mode-offload-cudagraph "
    "sleep-preserve-parameter-names sparse-indexer-topk-backend spec-method spec-model spec-tokens "
    "specialize-active-lora sse-keep-alive-interval ssl-ciphers swa-bounded-replay tool-strict-level "
    "trust-request-mm-kwargs ubatch-size use-fp64-gumbel use-replayssm video-pruning-method watchdog-config "
    "watermark watermark-config weight-transfer-config";

constexpr const char* kKeysOfObjects =
    "eplb_config.window_size eplb_config.step_interval eplb_config.num_redundant_experts eplb_config.log_balancedness "
    "eplb_config.log_balancedness_interval eplb_config.use_async eplb_config.policy eplb_config.communicator "
    "eplb_config.enable_migration_batching compilation_config.mode compilation_config.level "
    "compilation_config.cudagraph_mode compilation_config.cudagraph_capture_sizes "
    "compilation_config.max_cudagraph_capture_size compilation_config.custom_ops compilation_config.splitting_ops "
    "compilation_config.compile_sizes compilation_config.inductor_compile_config compilation_config.cache_dir "
    "compilation_config.backend compilation_config.debug_dump_path compilation_config.cudagraph_num_of_warmups "
    "compilation_config.cudagraph_copy_inputs compilation_config.use_inductor_graph_partition "
    "compilation_config.use_inductor compilation_config.pass_config.enable_fusion "
    "compilation_config.pass_config.enable_attn_fusion compilation_config.pass_config.enable_noop "
    "compilation_config.pass_config.enable_sequence_parallelism compilation_config.pass_config.enable_async_tp "
    "compilation_config.pass_config.enable_fi_allreduce_fusion "
    "compilation_config.pass_config.fi_allreduce_fusion_max_size_mb "
    "compilation_config.pass_config.enable_qk_norm_rope_fusion compilation_config.pass_config.fuse_norm_quant "
    "compilation_config.pass_config.fuse_act_quant compilation_config.pass_config.fuse_attn_quant "
    "compilation_config.pass_config.eliminate_noops compilation_config.pass_config.fuse_allreduce_rms "
    "compilation_config.pass_config.fuse_rope_kvcache_cat_mla kv_transfer_config.kv_connector "
    "kv_transfer_config.engine_id kv_transfer_config.kv_buffer_device kv_transfer_config.kv_role "
    "kv_transfer_config.kv_port kv_transfer_config.kv_connector_extra_config "
    "kv_transfer_config.kv_connector_module_path kv_transfer_config.enable_permute_local_kv "
    "kv_transfer_config.kv_load_failure_policy kv_transfer_config.kv_rank kv_transfer_config.kv_parallel_size "
    "kv_transfer_config.kv_ip kv_transfer_config.kv_buffer_size speculative_config.method "
    "speculative_config.num_speculative_tokens speculative_config.model "
    "speculative_config.draft_tensor_parallel_size speculative_config.max_model_len speculative_config.quantization "
    "speculative_config.disable_padded_drafter_batch speculative_config.rejection_sample_method";

constexpr const char* kVariables =
    "VLLM_USE_DEEP_GEMM VLLM_MOE_USE_DEEP_GEMM VLLM_USE_DEEP_GEMM_E8M0 VLLM_DEEP_GEMM_WARMUP VLLM_ALL2ALL_BACKEND "
    "VLLM_MOE_DP_CHUNK_SIZE VLLM_SKIP_P2P_CHECK VLLM_RANDOMIZE_DP_DUMMY_INPUTS VLLM_MOE_ROUTING_SIMULATION_STRATEGY "
    "NVIDIA_GDRCOPY PYTORCH_CUDA_ALLOC_CONF NVSHMEM_QP_DEPTH GLOO_SOCKET_IFNAME VLLM_USE_PRECOMPILED "
    "VLLM_NIXL_SIDE_CHANNEL_HOST VLLM_NIXL_SIDE_CHANNEL_PORT VLLM_DBO_COMM_SMS VLLM_DEEPEP_BUFFER_SIZE_MB "
    "VLLM_DEEPEP_HIGH_THROUGHPUT_FORCE_INTRA_NODE VLLM_DEEPEP_LOW_LATENCY_USE_MNNVL VLLM_DP_RANK VLLM_DP_RANK_LOCAL "
    "VLLM_DP_SIZE VLLM_DP_MASTER_IP VLLM_DP_MASTER_PORT VLLM_HOST_IP VLLM_LOGGING_LEVEL VLLM_SERVER_DEV_MODE "
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE VLLM_ENGINE_READY_TIMEOUT_S VLLM_V1_OUTPUT_PROC_CHUNK_SIZE "
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH VLLM_ATTENTION_BACKEND VLLM_FUSED_MOE_CHUNK_SIZE "
    "VLLM_ENABLE_FUSED_MOE_ACTIVATION_CHUNKING VLLM_NIXL_ABORT_REQUEST_TIMEOUT VLLM_ENGINE_ITERATION_TIMEOUT_S "
    "VLLM_RPC_TIMEOUT VLLM_FLASHINFER_MOE_BACKEND VLLM_USE_FLASHINFER_MOE_FP8 VLLM_TORCH_PROFILER_DIR "
    "VLLM_SLEEP_WHEN_IDLE VLLM_API_KEY";

bool has_row(const std::string& key) {
  return key == "config" || find_option(key).has_value();
}

TEST(SettingsTable, AnswersEveryOptionOfBothVersions) {
  for (const char* flags : {kFlagsOfBoth, kFlagsOf011, kFlagsOf033})
    for (const std::string& flag : split_words(flags)) EXPECT_TRUE(has_row(canonical(flag))) << flag;
}

TEST(SettingsTable, AnswersEveryKeyOfTheConfigObjects) {
  for (const std::string& key : split_words(kKeysOfObjects)) EXPECT_TRUE(has_row(key)) << key;
}

TEST(SettingsTable, AnswersEveryVariable) {
  std::set<std::string> known;
  for (const Setting& row : table()) known.insert(row.variables.begin(), row.variables.end());
  for (const Variable& v : variables()) known.insert(v.name);
  for (const std::string& name : split_words(kVariables)) EXPECT_TRUE(known.contains(name)) << name;
}

TEST(SettingsTable, NamesAreUnique) {
  std::set<std::string> names;
  for (const Setting& row : table()) {
    EXPECT_TRUE(names.insert(row.key).second) << row.key;
    for (const std::string& alias : row.aliases)
      EXPECT_TRUE(names.insert(alias.starts_with("--") ? canonical(alias) : alias).second) << alias;
  }
  for (const Renamed& r : renamed()) EXPECT_TRUE(names.insert(r.from).second) << r.from;
  std::set<std::string> variable_names;
  for (const Setting& row : table())
    for (const std::string& name : row.variables) EXPECT_TRUE(variable_names.insert(name).second) << name;
  for (const Variable& v : variables()) EXPECT_TRUE(variable_names.insert(v.name).second) << v.name;
}

TEST(SettingsTable, RowsAreComplete) {
  for (const Setting& row : table()) {
    EXPECT_FALSE(row.group.empty()) << row.key;
    EXPECT_TRUE(!row.help.empty() || !row.line.empty()) << row.key;
    EXPECT_EQ(row.answer != Answer::kWorks, !row.line.empty()) << row.key;
    if (!row.only_with.empty()) {
      EXPECT_NE(find(row.only_with), nullptr) << row.key;
    }
    // A key of an object needs the object's own row, or the command line could not take it.
    if (const size_t dot = row.key.rfind('.'); dot != std::string::npos) {
      const Setting* object = find(row.key.substr(0, dot));
      ASSERT_NE(object, nullptr) << row.key;
      EXPECT_EQ(object->kind, Kind::kObject) << row.key;
    }
  }
  for (const Renamed& r : renamed())
    for (const std::string& to : r.to) EXPECT_NE(find(to), nullptr) << r.from;
}

// A default that its own row would not accept could not be written down by a user.
TEST(SettingsTable, DefaultsObeyTheirRows) {
  for (const Setting& row : table()) {
    if (row.default_json == "null" || row.kind == Kind::kObject) continue;
    const auto value = coerce(row, nlohmann::json::parse(row.default_json));
    ASSERT_TRUE(value.ok()) << row.key << ": " << value.error().message;
    EXPECT_EQ(value->dump(), row.default_json) << row.key;
    EXPECT_EQ(refusal(row, *value), "") << row.key;
  }
}

TEST(SettingsTable, NamesAreSpelledEitherWay) {
  EXPECT_EQ(canonical("--max-num-seqs"), "max_num_seqs");
  EXPECT_EQ(option_name("max_num_seqs"), "--max-num-seqs");
  EXPECT_EQ(option_name("eplb_config.window_size"), "--eplb-config.window_size");
  EXPECT_EQ(canonical_path("eplb-config.window-size"), "eplb_config.window_size");
  EXPECT_EQ(canonical_path("kv-transfer-config.kv-connector-extra-config.num-threads"),
            "kv_transfer_config.kv_connector_extra_config.num-threads");
  EXPECT_EQ(find_option("-dp"), "data_parallel_size");
  EXPECT_EQ(find_option("master_addr"), "data_parallel_address");
  EXPECT_EQ(find_option("dp"), std::nullopt);
}

TEST(SettingsTable, NearestName) {
  const std::vector<std::string> names = {"max_num_seqs", "max_model_len", "port"};
  EXPECT_EQ(nearest_name("max_num_seq", names), "max_num_seqs");
  EXPECT_EQ(nearest_name("prot", names), "port");
  EXPECT_EQ(nearest_name("something_else", names), "");
}

TEST(SettingsDocs, PageIsWhatTheTableSays) {
  std::ifstream file("docs/settings.md");
  ASSERT_TRUE(file) << "run from the source root";
  std::ostringstream text;
  text << file.rdbuf();
  EXPECT_TRUE(text.str() == settings_markdown()) << "write it anew: manta settings --markdown > docs/settings.md";
}

TEST(SettingsDocs, HelpShowsWhatWorksAndFindsTheRest) {
  const std::string help = settings_help("");
  EXPECT_NE(help.find("--max-num-seqs SIZE"), std::string::npos);
  EXPECT_NE(help.find("--no-enable-prefix-caching"), std::string::npos);
  EXPECT_EQ(help.find("--enable-lora"), std::string::npos);
  EXPECT_NE(settings_help("all").find("--enable-lora"), std::string::npos);
  const std::string about = settings_help("eplb");
  EXPECT_NE(about.find("--enable-eplb"), std::string::npos);
  EXPECT_EQ(about.find("--max-num-seqs"), std::string::npos);
  EXPECT_NE(settings_help("no-such-thing").find("no option or group is called"), std::string::npos);
  std::istringstream lines(settings_help("all"));
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 140u) << line;
}

}  // namespace
}  // namespace manta::settings
