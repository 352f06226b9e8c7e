// What no single row can see.
#include <fmt/format.h>

#include "base/settings/assignments.h"

namespace manta::settings {

namespace {

std::string given(std::string_view key, int64_t value) {
  return fmt::format("{} {}", key, value);
}

void check_server(const Settings& s, Lines& problems) {
  if (s.enable_auto_tool_choice && !s.tool_call_parser)
    problems.add("enable_auto_tool_choice", "needs tool_call_parser (deepseek_v3, deepseek_v31)");
  if (s.ssl_keyfile && !s.ssl_certfile) problems.add("ssl_keyfile", "needs ssl_certfile");
  if (s.ssl_certfile && !s.ssl_keyfile) problems.add("ssl_certfile", "needs ssl_keyfile");
  if (s.ssl_cert_reqs > 0 && !s.ssl_ca_certs)
    problems.add(given("ssl_cert_reqs", s.ssl_cert_reqs), "needs ssl_ca_certs to check clients against");
  if (s.uds && s.host) problems.add("uds", "excludes host: the API listens on one or the other");
  if (s.api_server_count && s.headless)
    problems.add(given("api_server_count", *s.api_server_count), "headless has no API server; leave it out");
}

void check_scheduler(const Settings& s, Lines& problems) {
  if (s.max_num_batched_tokens < s.max_num_seqs)
    problems.add(
        given("max_num_batched_tokens", s.max_num_batched_tokens),
        fmt::format("must be at least max_num_seqs ({}), so that every running request gets a token", s.max_num_seqs));
  if (!s.enable_chunked_prefill && s.max_model_len && s.max_num_batched_tokens < *s.max_model_len)
    problems.add(given("max_num_batched_tokens", s.max_num_batched_tokens),
                 fmt::format("must be at least max_model_len ({}) without enable_chunked_prefill, or the longest "
                             "prompts could never run",
                             *s.max_model_len));
  if (s.kv_cache_memory_bytes && s.num_gpu_blocks_override)
    problems.add("num_gpu_blocks_override", "excludes kv_cache_memory_bytes: both give the size of the cache");
  const SpeculativeConfig& spec = s.speculative_config;
  if (spec.num_speculative_tokens && !spec.method)
    problems.add("speculative_config", "num_speculative_tokens needs a method (mtp)");
}

void check_data_parallel(const Settings& s, Lines& problems) {
  const int64_t size = s.data_parallel_size;
  if (s.data_parallel_size_local && *s.data_parallel_size_local > size)
    problems.add(given("data_parallel_size_local", *s.data_parallel_size_local),
                 fmt::format("must be at most data_parallel_size ({})", size));
  if (s.data_parallel_start_rank) {
    if (!s.data_parallel_size_local)
      problems.add("data_parallel_start_rank", "needs data_parallel_size_local");
    else if (*s.data_parallel_start_rank + *s.data_parallel_size_local > size)
      problems.add(given("data_parallel_start_rank", *s.data_parallel_start_rank),
                   fmt::format("with data_parallel_size_local {} must stay below data_parallel_size ({})",
                               *s.data_parallel_size_local, size));
  }
  if (s.data_parallel_rank && *s.data_parallel_rank >= size)
    problems.add(given("data_parallel_rank", *s.data_parallel_rank),
                 fmt::format("must be less than data_parallel_size ({})", size));
  if (s.data_parallel_rank && s.data_parallel_size_local.value_or(1) != 1)
    problems.add("data_parallel_rank", "is the only rank of its process: data_parallel_size_local must be 1 or absent");
  if (s.data_parallel_external_lb && size == 1)
    problems.add("data_parallel_external_lb", "needs data_parallel_size above 1");
  else if (s.data_parallel_external_lb && !s.data_parallel_rank)
    problems.add("data_parallel_external_lb", "needs data_parallel_rank: which of the ranks is this one?");
  if (s.headless && s.data_parallel_rank)
    problems.add("headless", "excludes data_parallel_rank: a rank that is balanced outside has an API of its own");
  if (s.data_parallel_size_local == 0 && (s.headless || s.data_parallel_hybrid_lb || s.data_parallel_start_rank))
    problems.add("data_parallel_size_local 0",
                 "leaves this node nothing to do: only the head of internal balancing has "
                 "an API without engines");
  if (s.coordinator && !s.coordinator->starts_with("tcp:") && !s.coordinator->starts_with("unix:"))
    problems.add(fmt::format("coordinator {}", *s.coordinator), "must be tcp:HOST:PORT or unix:@NAME");
  if (s.data_parallel_hybrid_lb && s.data_parallel_external_lb)
    problems.add("data_parallel_hybrid_lb", "excludes data_parallel_external_lb");
  if (s.data_parallel_hybrid_lb && !s.data_parallel_size_local)
    problems.add("data_parallel_hybrid_lb", "needs data_parallel_size_local");
  if (s.data_parallel_hybrid_lb && s.headless)
    problems.add("data_parallel_hybrid_lb", "excludes headless: every node has its own API server");
}

void check_experts(const Settings& s, Lines& problems) {
  if (s.eplb_config.num_redundant_experts > 0 && !s.enable_eplb)
    problems.add(given("eplb_config.num_redundant_experts", s.eplb_config.num_redundant_experts), "needs enable_eplb");
  if (s.enable_eplb && !s.enable_expert_parallel) problems.add("enable_eplb", "needs enable_expert_parallel");
  if (s.enable_eplb && s.data_parallel_size == 1)
    problems.add("enable_eplb", "needs data_parallel_size above 1: one rank has nothing to balance");
  if (s.enable_dbo && s.data_parallel_size == 1)
    problems.add("enable_dbo", "needs data_parallel_size above 1: one rank has no communication to hide");
  else if (s.enable_dbo && !s.enable_expert_parallel)
    problems.add("enable_dbo", "needs enable_expert_parallel: ranks with all experts have no communication to hide");
}

void check_kv_transfer(const Settings& s, Lines& problems) {
  const KvTransferConfig& kv = s.kv_transfer_config;
  if (kv.kv_connector && !kv.kv_role)
    problems.add("kv_transfer_config", "kv_connector needs kv_role (kv_producer, kv_consumer, kv_both)");
  if (kv.kv_role && !kv.kv_connector) problems.add("kv_transfer_config", "kv_role needs kv_connector");
}

}  // namespace

void check_together(const Settings& s, Lines& problems) {
  check_server(s, problems);
  check_scheduler(s, problems);
  check_data_parallel(s, problems);
  check_experts(s, problems);
  check_kv_transfer(s, problems);
}

}  // namespace manta::settings

namespace manta {

Status validate(const Settings& settings) {
  settings::Lines problems;
  settings::check_together(settings, problems);
  if (problems.empty()) return {};
  return error(ErrorCode::kInvalidArgument, problems.joined());
}

}  // namespace manta
