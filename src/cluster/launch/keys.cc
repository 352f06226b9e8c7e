#include "cluster/launch/keys.h"

namespace manta::cluster {
namespace {

constexpr KeyUse kNoted = KeyUse::kNoted;
constexpr KeyUse kRefused = KeyUse::kRefused;

constexpr const char* kPlacement = "places Ray actors; on one machine all ranks are here";
constexpr const char* kServe = "of Ray Serve's own processes, and there are none here";
constexpr const char* kFiles = "ships code to the nodes of a cluster; one machine has everything already";
constexpr const char* kScaling = "paces Ray's autoscaler; nothing scales by itself on one machine";

constexpr Key kFile[] = {
    {"applications"},
    {"http_options"},
    {"name", kNoted, "names a hosted service; nothing is hosted here"},
    {"working_dir", kNoted, kFiles},
    {"query_auth_token_enabled"},
    {"proxy_location", kNoted, kServe},
    {"grpc_options", kNoted, kServe},
    {"logging_config", kNoted, kServe},
    {"target_capacity", kNoted, kServe},
    {"metadata", kNoted, kServe},
};

constexpr Key kHttp[] = {
    {"host"},
    {"port"},
    {"request_timeout_s", kNoted, kServe},
    {"keep_alive_timeout_s", kNoted, kServe},
    {"ssl_keyfile", kRefused, "give it in decode_config.engine_kwargs: the router speaks TLS with it"},
    {"ssl_certfile", kRefused, "give it in decode_config.engine_kwargs: the router speaks TLS with it"},
};

constexpr Key kApplication[] = {
    {"name"},
    {"route_prefix"},
    {"import_path"},
    {"args"},
    {"runtime_env"},
    {"deployments", kRefused, "set the options in the deployment_config of prefill_config or decode_config"},
    {"host", kNoted, kServe},
    {"port", kNoted, kServe},
    {"logging_config", kNoted, kServe},
    {"external_scaler_enabled", kNoted, kScaling},
    {"autoscaling_policy", kNoted, kScaling},
};

constexpr Key kArgs[] = {
    {"prefill_config"},
    {"decode_config"},
    {"llm_config"},
    {"ingress_deployment_config"},
    {"direct_port", kNoted, "beside Ray's port; here the router has the only port"},
};

constexpr Key kRole[] = {
    {"model_loading_config"},
    {"deployment_config"},
    {"engine_kwargs"},
    {"experimental_configs"},
    {"runtime_env"},
    {"llm_engine"},
    {"accelerator_type", kNoted, kPlacement},
    {"accelerator_config", kNoted, kPlacement},
    {"placement_group_config", kNoted, kPlacement},
    {"log_engine_metrics", kNoted, "the metrics of all engines are on the router's /metrics in any case"},
    {"lora_config", kRefused, "LoRA adapters are not served"},
};

constexpr Key kModel[] = {{"model_id"}, {"model_source"}, {"tokenizer_source"}};

constexpr Key kDeployment[] = {
    {"request_router_config"},
    {"num_replicas"},
    {"autoscaling_config"},
    {"ray_actor_options", kNoted, kPlacement},
    {"placement_group_bundles", kNoted, kPlacement},
    {"placement_group_strategy", kNoted, kPlacement},
    {"max_replicas_per_node", kNoted, kPlacement},
    {"max_ongoing_requests", kNoted, "max_num_queued_reqs of engine_kwargs bounds what is taken in"},
    {"max_queued_requests", kNoted, "max_num_queued_reqs of engine_kwargs bounds what is taken in"},
    {"graceful_shutdown_timeout_s", kNoted, "shutdown_timeout of engine_kwargs bounds draining"},
    {"graceful_shutdown_wait_loop_s", kNoted, kServe},
    {"health_check_period_s", kNoted, "a process that ends is seen at once; rank_deadline_s is for one that hangs"},
    {"health_check_timeout_s", kNoted, "a process that ends is seen at once; rank_deadline_s is for one that hangs"},
    {"logging_config", kNoted, kServe},
    {"user_config", kNoted, kServe},
    {"name", kNoted, kServe},
};

constexpr Key kRequestRouter[] = {
    {"request_router_class"},
    {"request_router_kwargs", kNoted, "tunes Ray's router; the policy here is manta's own"},
    {"request_routing_stats_period_s", kNoted, "tunes Ray's router; the policy here is manta's own"},
    {"request_routing_stats_timeout_s", kNoted, "tunes Ray's router; the policy here is manta's own"},
};

constexpr Key kAutoscaling[] = {
    {"min_replicas"},
    {"max_replicas"},
    {"initial_replicas"},
    {"target_ongoing_requests", kNoted, kScaling},
    {"target_num_ongoing_requests_per_replica", kNoted, kScaling},
    {"metrics_interval_s", kNoted, kScaling},
    {"look_back_period_s", kNoted, kScaling},
    {"smoothing_factor", kNoted, kScaling},
    {"upscale_smoothing_factor", kNoted, kScaling},
    {"downscale_smoothing_factor", kNoted, kScaling},
    {"upscaling_factor", kNoted, kScaling},
    {"downscaling_factor", kNoted, kScaling},
    {"upscale_delay_s", kNoted, kScaling},
    {"downscale_delay_s", kNoted, kScaling},
    {"downscale_to_zero_delay_s", kNoted, kScaling},
    {"aggregation_function", kNoted, kScaling},
    {"policy", kNoted, kScaling},
};

constexpr Key kExperimental[] = {
    {"dp_size_per_node"},
    {"NIXL_SIDE_CHANNEL_PORT_BASE"},
    {"stream_batching_interval_ms", kNoted, "tokens leave with the step that made them; see stream_interval"},
};

constexpr Key kRuntimeEnv[] = {
    {"env_vars"},
    {"working_dir", kNoted, kFiles},
    {"py_modules", kNoted, kFiles},
    {"pip", kNoted, kFiles},
    {"uv", kNoted, kFiles},
    {"conda", kNoted, kFiles},
    {"excludes", kNoted, kFiles},
    {"py_executable", kNoted, kFiles},
    {"image_uri", kNoted, kFiles},
    {"container", kNoted, kFiles},
    {"config", kNoted, kFiles},
    {"worker_process_setup_hook", kNoted, kFiles},
};

}  // namespace

// clang-format off
std::span<const Key> file_keys() { return kFile; }
std::span<const Key> http_keys() { return kHttp; }
std::span<const Key> application_keys() { return kApplication; }
std::span<const Key> args_keys() { return kArgs; }
std::span<const Key> role_keys() { return kRole; }
std::span<const Key> model_keys() { return kModel; }
std::span<const Key> deployment_keys() { return kDeployment; }
std::span<const Key> request_router_keys() { return kRequestRouter; }
std::span<const Key> autoscaling_keys() { return kAutoscaling; }
std::span<const Key> experimental_keys() { return kExperimental; }
std::span<const Key> runtime_env_keys() { return kRuntimeEnv; }
// clang-format on

}  // namespace manta::cluster
