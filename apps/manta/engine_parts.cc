#include "manta/engine_parts.h"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "backend/cuda_library.h"
#include "base/log.h"
#include "engine/scheduler_options.h"
#include "exec/fake_executor.h"
#include "exec/local_executor.h"
#include "manta/kv_transfer.h"
#include "model/config.h"
#include "model/generation_config.h"
#include "text/tokenizer.h"

namespace manta {
namespace {

using nlohmann::json;

constexpr const char* kDefaultFakeScript = "The quick brown fox jumps over the lazy dog. ";

// Tokens from a script, at a pace, with the vocabulary of the model's own tokenizer: everything but the model is real.
Result<std::unique_ptr<exec::Executor>> make_fake_executor(const Settings& s) {
  MANTA_ASSIGN(const auto tokenizer, text::Tokenizer::load(s.tokenizer.value_or(s.model)));
  exec::FakeExecutorOptions options;
  MANTA_ASSIGN(options.script, tokenizer->encode(s.fake_script.value_or(kDefaultFakeScript), {}));
  if (options.script.empty()) return error(ErrorCode::kInvalidArgument, "fake_script: gives no tokens");
  options.vocab_size = tokenizer->vocab_size();
  options.max_num_seqs = static_cast<int>(s.max_num_seqs);
  options.max_num_batched_tokens = static_cast<int>(s.max_num_batched_tokens);
  options.max_model_len = static_cast<int>(s.max_model_len.value_or(4096));
  options.geometry.block_size = static_cast<int>(s.block_size);
  const int64_t for_all = s.max_num_seqs * ((options.max_model_len + s.block_size - 1) / s.block_size);
  options.geometry.num_blocks =
      static_cast<int>(s.num_gpu_blocks_override.value_or(std::min<int64_t>(for_all, 1 << 16)));
  options.max_in_flight = s.async_scheduling ? 2 : 1;
  if (s.fake_tokens_per_second > 0) {
    options.step_duration = std::chrono::microseconds(static_cast<int64_t>(1e6 / s.fake_tokens_per_second));
  }
  return std::unique_ptr<exec::Executor>(std::make_unique<exec::FakeExecutor>(std::move(options)));
}

// Cores of this process, shared by the engines of this node.
int threads_per_engine(const Settings& s) {
  if (s.cpu_threads > 0) return static_cast<int>(s.cpu_threads);
  cpu_set_t allowed;
  const int num_cores = ::sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
  return std::max(1, num_cores / static_cast<int>(s.data_parallel_size_local.value_or(s.data_parallel_size)));
}

// vLLM's backends, by what they do: the low-latency ones hand each expert its own plane of rows, the others one matrix.
std::optional<ep::ExpertLayout> layout_of(const std::string& all2all_backend) {
  if (all2all_backend == "auto") return std::nullopt;  // the device's choice
  const bool masked =
      all2all_backend == "pplx" || all2all_backend == "nixl_ep" || all2all_backend.ends_with("low_latency");
  return masked ? ep::ExpertLayout::kMasked : ep::ExpertLayout::kContiguous;
}

// What is captured on a device that can: decode steps, whole. A prefill step is never captured.
void choose_captures(const Settings& s, exec::LocalExecutorOptions& options) {
  const std::string mode = s.compilation_config.cudagraph_mode.value_or("FULL_DECODE_ONLY");
  options.capture_steps = !s.enforce_eager && mode != "NONE";
  for (const int64_t size : s.compilation_config.cudagraph_capture_sizes) {
    options.capture_sizes.push_back(static_cast<int>(size));
  }
  if (const auto most = s.compilation_config.max_cudagraph_capture_size) {
    std::erase_if(options.capture_sizes, [&](int size) { return size > *most; });
    options.max_capture_size = static_cast<int>(*most);
  }
  if (options.device == "cuda" && mode.find("PIECEWISE") != std::string::npos) {
    spdlog::info("cudagraph_mode {}: manta captures whole decode steps (FULL_DECODE_ONLY) and runs prefill eagerly",
                 mode);
  }
}

exec::EplbOptions eplb_options(const Settings& s) {
  const EplbConfig& c = s.eplb_config;
  exec::EplbOptions out;
  out.enabled = s.enable_eplb;
  out.window_size = c.window_size;
  out.step_interval = c.step_interval;
  out.min_gain = c.min_gain;
  out.policy = c.policy == "hierarchical" ? ep::EplbPolicy::kHierarchical
               : c.policy == "global"     ? ep::EplbPolicy::kGlobal
                                          : ep::EplbPolicy::kAuto;
  out.use_async = c.use_async;
  out.log_balancedness = c.log_balancedness;
  out.log_interval = c.log_balancedness_interval;
  return out;
}

// What the cuda backend lacks of what these settings ask for; empty: nothing.
std::string missing_on_cuda(const Settings& s, const transfer::Connector& connector) {
  if (connector.needs_shared_cache)
    return "SharedMemoryConnector (it maps host memory; NixlConnector takes GPU memory)";
  if (expert_group_size(s) > 0) return "expert parallelism between ranks (enable_expert_parallel)";
  if (!s.moe_routing_simulation_strategy.empty()) return "simulated routing (moe_routing_simulation_strategy)";
  return "";
}

Result<std::string> choose_device(const Settings& s, const transfer::Connector& connector) {
  const std::string device = backend::resolve_device(s.device);
  if (device == "cpu") return s.cpu_backend;
  const std::string missing = missing_on_cuda(s, connector);
  if (missing.empty()) return device;
  if (s.device != "auto") {
    return error(
        ErrorCode::kInvalidArgument,
        fmt::format("device {}: {} is not done there yet; leave it out, or give --device cpu", device, missing));
  }
  spdlog::warn("device auto: there is a GPU, but {} is not done there yet; this engine runs on the CPU", missing);
  return s.cpu_backend;
}

Result<std::unique_ptr<exec::Executor>> make_model_executor(const Settings& s, int rank, transfer::Connector& connector,
                                                            model::ProgressFn progress) {
  exec::LocalExecutorOptions options;
  options.model = s.model;
  options.hf_overrides = s.hf_overrides.text;
  options.load_format = s.load_format == "dummy" ? "dummy" : "auto";
  options.seed = static_cast<uint64_t>(s.seed);
  MANTA_ASSIGN(options.device, choose_device(s, connector));
  options.backend.num_threads = threads_per_engine(s);
  options.backend.fp8_activations = s.fp8_activations;
  if (s.fp8_activations == "auto") options.backend.fp8_activations = options.device == "cuda" ? "dynamic" : "none";
  if (rank == 0) spdlog::info("fp8_activations: {} ({})", options.backend.fp8_activations, options.device);
  options.backend.batch_invariant = s.batch_invariant;
  options.backend.routing_simulation = s.moe_routing_simulation_strategy;
  options.max_num_seqs = static_cast<int>(s.max_num_seqs);
  options.max_num_batched_tokens = static_cast<int>(s.max_num_batched_tokens);
  options.max_model_len = static_cast<int>(s.max_model_len.value_or(0));
  options.block_size = static_cast<int>(s.block_size);
  if (s.speculative_config.method) {
    options.num_speculative_tokens = static_cast<int>(s.speculative_config.num_speculative_tokens.value_or(1));
  }
  options.max_in_flight = s.async_scheduling ? 2 : 1;
  options.device_memory_utilization = s.gpu_memory_utilization;
  choose_captures(s, options);
  options.num_blocks = static_cast<int>(s.num_gpu_blocks_override.value_or(0));
  options.cache_bytes = static_cast<size_t>(s.kv_cache_memory_bytes.value_or(0));
  if (expert_group_size(s) > 0) {
    options.ep_rank = rank;
    options.ep_size = expert_group_size(s);
    options.transport.kind = "auto";
    options.transport.layout = layout_of(s.all2all_backend);
    if (rank == 0 && options.transport.layout) {
      spdlog::info("all2all_backend {}: here, shared memory or tcp with the {} layout", s.all2all_backend,
                   *options.transport.layout == ep::ExpertLayout::kMasked ? "masked" : "contiguous");
    }
    options.transport.interface = s.socket_ifname.value_or("");
    options.max_tokens_per_round = static_cast<int>(s.moe_dp_chunk_size);
    options.may_shrink = s.shrink_after_s > 0;
    options.num_redundant_experts = static_cast<int>(s.eplb_config.num_redundant_experts);
    options.eplb = eplb_options(s);
  }
  options.num_microbatches = s.enable_dbo ? 2 : 1;
  options.num_local_ranks = static_cast<int>(s.data_parallel_size_local.value_or(s.data_parallel_size));
  options.backend.shareable_cache = connector.needs_shared_cache;
  options.progress = std::move(progress);
  return exec::make_local_executor(std::move(options), std::move(connector.worker));
}

Result<std::unique_ptr<sched::Scheduler>> make_scheduler(const Settings& s, const exec::ExecutorInfo& info,
                                                         transfer::KvConnectorScheduler* connector) {
  sched::SchedulerOptions options = engine::scheduler_options(info);
  options.policy = s.scheduling_policy == "priority" ? sched::Policy::kPriority : sched::Policy::kFcfs;
  options.enable_prefix_caching = s.enable_prefix_caching;
  options.enable_chunked_prefill = s.enable_chunked_prefill;
  options.long_prefill_token_threshold = static_cast<int>(s.long_prefill_token_threshold);
  options.recompute_failed_loads = s.kv_transfer_config.kv_load_failure_policy == "recompute";
  return sched::Scheduler::make(options, connector);
}

engine::Welcome make_welcome(const Settings& s, const exec::ExecutorInfo& info, int rank) {
  engine::Welcome w;
  w.rank = rank;
  w.pid = ::getpid();
  w.model = s.model;
  w.vocab_size = info.vocab_size;
  w.max_model_len = info.max_model_len;
  w.max_num_seqs = info.max_num_seqs;
  w.num_blocks = info.geometry.num_blocks;
  w.block_size = info.geometry.block_size;
  w.num_speculative_tokens = info.num_speculative_tokens;
  return w;
}

std::string make_summary(const exec::ExecutorInfo& info) {
  json memory = json::object();
  for (const auto& line : info.memory) memory[line.name] = line.bytes;
  return json{{"device", info.device},
              {"num_blocks", info.geometry.num_blocks},
              {"block_size", info.geometry.block_size},
              {"max_model_len", info.max_model_len},
              {"memory", memory}}
      .dump();
}

// With what a router must compare before it sends rows from one engine to another.
std::string describe(const std::string& connector, const transfer::KvConnectorWorker* worker) {
  if (worker == nullptr) return "";
  json out = json::parse(connector);
  for (const auto& [key, value] : worker->compatibility()) out["compatibility"][key] = value;
  return out.dump();
}

// The engine never tokenizes; a grammar needs to know which bytes each token stands for.
Result<std::unique_ptr<sample::GrammarCompiler>> make_grammar_compiler(const std::string& model_path,
                                                                       const std::string& tokenizer_path,
                                                                       const std::string& overrides, int vocab_size) {
  MANTA_ASSIGN(const auto tokenizer, text::Tokenizer::load(tokenizer_path));
  MANTA_ASSIGN(const auto config, model::load_config(model_path, overrides));
  MANTA_ASSIGN(const auto generation, model::load_generation_config(model_path, vocab_size));
  sample::GrammarVocabulary vocabulary;
  vocabulary.vocab_size = vocab_size;
  for (TokenId id = 0; id < std::min<TokenId>(vocab_size, tokenizer->vocab_size()); ++id) {
    const bool plain = tokenizer->has_token(id) && !tokenizer->is_special(id);
    vocabulary.token_bytes.emplace_back(plain ? tokenizer->token_bytes(id) : std::string_view{});
  }
  vocabulary.stop_token_ids = generation.eos_token_ids.empty() ? config.eos_token_ids : generation.eos_token_ids;
  return sample::GrammarCompiler::make(vocabulary);
}

}  // namespace

Result<EngineParts> make_engine_parts(const Settings& settings, int rank, model::ProgressFn progress) {
  EngineParts parts;
  MANTA_ASSIGN(transfer::Connector connector, make_kv_connector(settings, rank));
  transfer::KvConnectorWorker* const kv_worker = connector.worker.get();  // the executor's from here on
  MANTA_ASSIGN(parts.executor, settings.executor == "fake"
                                   ? make_fake_executor(settings)
                                   : make_model_executor(settings, rank, connector, std::move(progress)));
  const exec::ExecutorInfo& info = parts.executor->info();
  parts.kv_connector = std::move(connector.scheduler);
  MANTA_ASSIGN(parts.scheduler, make_scheduler(settings, info, parts.kv_connector.get()));
  if (kv_worker != nullptr) {
    parts.options.watch_transfers = [kv_worker](auto wake) { kv_worker->set_wake(std::move(wake)); };
  }
  parts.options.rank = rank;
  if (settings.enable_dbo) {
    parts.options.dbo_decode_token_threshold = static_cast<int>(settings.dbo_decode_token_threshold);
    parts.options.dbo_prefill_token_threshold = static_cast<int>(settings.dbo_prefill_token_threshold);
  }
  parts.options.step_deadline = std::chrono::milliseconds(static_cast<int64_t>(settings.step_deadline_s * 1000));
  parts.options.max_num_plans = std::min(settings.async_scheduling ? 2 : 1, info.max_in_flight);
  parts.grammars = [model = settings.model, tokenizer = settings.tokenizer.value_or(settings.model),
                    overrides = settings.hf_overrides.text, vocab_size = info.vocab_size] {
    return make_grammar_compiler(model, tokenizer, overrides, vocab_size);
  };
  parts.welcome = make_welcome(settings, info, rank);
  parts.welcome.kv_transfer = describe(connector.description, kv_worker);
  parts.summary = make_summary(info);
  return parts;
}

int expert_group_size(const Settings& s) {
  return s.enable_expert_parallel && s.data_parallel_size > 1 ? static_cast<int>(s.data_parallel_size) : 0;
}

std::string host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) return "localhost";
  return name.data();
}

}  // namespace manta
