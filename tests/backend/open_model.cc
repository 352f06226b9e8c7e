#include "open_model.h"

#include <chrono>

#include "model/loader.h"

namespace manta::backend::testing {

std::unique_ptr<model::LayerDriver> OpenModel::make_driver(model::LayerHook* hook) {
  model::DriverParts parts = {.backend = backend.get(),
                              .config = &config,
                              .weights = weights.get(),
                              .experts = &map,
                              .transport = transport.get(),
                              .clock = &clock,
                              .hook = hook};
  for (const auto& act : activations) parts.activations.push_back(act.get());
  return take(model::LayerDriver::make(std::move(parts)));
}

std::unique_ptr<OpenModel> open_model(std::unique_ptr<Backend> backend, const std::string& folder,
                                      const OpenOptions& options) {
  auto opened = std::make_unique<OpenModel>();
  OpenModel& m = *opened;
  m.backend = std::move(backend);
  m.config = take(model::load_config(folder, ""));
  if (options.limits.num_speculative_tokens > 0) check(model::enable_mtp(m.config));
  const ModelShape& s = m.config.shape;
  check(m.backend->init(s, options.limits));
  m.map = take(ep::linear_expert_map(model::num_moe_rows(s), s.n_routed_experts, 0, 1, {}));
  const auto source = take(model::open_checkpoint(folder, m.config));
  const auto begin = std::chrono::steady_clock::now();
  m.weights = take(model::load_weights(m.config, *source, *m.backend,
                                       {.experts = {.map = &m.map}, .num_threads = options.load_threads}));
  m.load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  check(m.backend->make_cache({.num_layers = s.num_layers(),
                               .num_blocks = options.num_blocks,
                               .block_size = options.block_size,
                               .kv_lora_rank = s.kv_lora_rank,
                               .qk_rope_head_dim = s.qk_rope_head_dim,
                               .dtype = m.backend->caps().cache_dtype}));
  for (int i = 0; i < options.limits.num_microbatches; ++i) {
    m.activations.push_back(take(m.backend->make_activations()));
  }
  m.transport = take(m.backend->make_transport({}));
  check(m.transport->configure({},
                               {.hidden_size = s.hidden_size,
                                .num_experts_per_tok = s.num_experts_per_tok,
                                .num_physical_experts = m.map.num_physical,
                                .num_local_experts = m.map.num_physical,
                                .wire_dtype = m.backend->caps().wire_dtype},
                               options.limits.max_num_tokens, options.limits.num_microbatches));
  return opened;
}

}  // namespace manta::backend::testing
