#include "transfer/make_connector.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <random>

#include "transfer/decode_bench.h"
#include "transfer/extra_config.h"
#include "transfer/multi_connector.h"
#include "transfer/nixl_mover.h"
#include "transfer/pull_scheduler.h"

namespace manta::transfer {
namespace {

using nlohmann::json;

std::string random_name() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}", random(), random());
}

KvRole role_of(const std::string& kv_role) {
  if (kv_role == "kv_producer") return KvRole::kProducer;
  return kv_role == "kv_consumer" ? KvRole::kConsumer : KvRole::kBoth;
}

Result<Connector> make_pulling(const ConnectorConfig& config, const LeaseKeys& keys,
                               std::unique_ptr<BlockMover> mover) {
  const std::string name = config.engine_id.empty() ? random_name() : config.engine_id;
  ExchangeOptions options;
  options.engine_id = fmt::format("{}_dp{}", name, config.rank);
  options.host = config.host;
  options.port = config.port == 0 ? 0 : config.port + config.rank;
  options.block_size = config.block_size;
  options.lease.unclaimed = config.unclaimed;
  options.lease.lease = keys.lease;
  options.lease.rendezvous = keys.rendezvous;
  options.compatibility = config.compatibility;
  options.compatibility.emplace_back("kv_connector", config.kv_connector);

  Connector out;
  PullSchedulerOptions scheduler{options.engine_id, options.host, 0, role_of(config.kv_role), config.block_size};
  MANTA_ASSIGN(auto exchange, Exchange::listen(std::move(options), std::move(mover)));
  scheduler.port = exchange->port();
  out.description = json{
      {"kv_connector", config.kv_connector},
      {"kv_role", config.kv_role},
      {"engine_id", scheduler.engine_id},
      {"host", scheduler.host},
      {"port",
       scheduler.port}}.dump();
  out.scheduler = make_pull_scheduler(std::move(scheduler));
  out.worker = std::move(exchange);
  return out;
}

Result<Connector> make_shared_memory(const ConnectorConfig& config, ExtraConfig& extra) {
  MANTA_ASSIGN(const LeaseKeys keys, read_lease_keys(extra));
  MANTA_TRY(extra.check_all_read());
  MANTA_ASSIGN(Connector out, make_pulling(config, keys, make_shared_memory_mover()));
  out.needs_shared_cache = true;
  return out;
}

Result<Connector> make_nixl(const ConnectorConfig& config, ExtraConfig& extra) {
  MANTA_ASSIGN(const LeaseKeys keys, read_lease_keys(extra));
  NixlOptions options;
  MANTA_ASSIGN(options.backends, extra.strings("backends", {"UCX"}));
  MANTA_ASSIGN(const double num_threads, extra.number("num_threads", options.num_threads, 1, 64));
  MANTA_TRY(extra.check_all_read());
  options.num_threads = static_cast<int>(num_threads);
  options.library = config.nixl_lib;
  options.name = random_name();
  MANTA_ASSIGN(auto mover, make_nixl_mover(options));
  return make_pulling(config, keys, std::move(mover));
}

Result<Connector> make_decode_bench(const ConnectorConfig& config, ExtraConfig& extra) {
  DecodeBenchOptions options;
  options.block_size = config.block_size;
  MANTA_ASSIGN(options.fill_mean, extra.number("fill_mean", options.fill_mean, -1e4, 1e4));
  MANTA_ASSIGN(options.fill_std, extra.number("fill_std", options.fill_std, 0, 1e4));
  MANTA_TRY(extra.check_all_read());
  Connector out;
  out.scheduler = make_decode_bench_scheduler(options);
  out.worker = make_decode_bench_worker(options);
  out.description = json{{"kv_connector", config.kv_connector}, {"kv_role", config.kv_role}}.dump();
  return out;
}

// A child is a KVTransferConfig; what it does not say is as for the whole.
Result<ConnectorConfig> child_config(const ConnectorConfig& whole, const std::string& text) {
  ConnectorConfig out = whole;
  out.extra_config.clear();
  const json object = json::parse(text);
  for (const auto& [key, value] : object.items()) {
    const bool is_text = value.is_string();
    if (key == "kv_connector" && is_text) {
      out.kv_connector = value.get<std::string>();
    } else if (key == "kv_role" && is_text) {
      out.kv_role = value.get<std::string>();
    } else if (key == "engine_id" && is_text) {
      out.engine_id = value.get<std::string>();
    } else if (key == "kv_connector_extra_config" && value.is_object()) {
      out.extra_config = value.dump();
    } else {
      return error(ErrorCode::kInvalidArgument,
                   fmt::format("kv_connector_extra_config.connectors: {} = {}: a child has kv_connector, kv_role, "
                               "engine_id and kv_connector_extra_config",
                               key, value.dump().substr(0, 80)));
    }
  }
  if (out.kv_connector == whole.kv_connector) {
    return error(ErrorCode::kInvalidArgument, "kv_connector_extra_config.connectors: a child needs kv_connector");
  }
  return out;
}

Result<Connector> make_multi(const ConnectorConfig& config, ExtraConfig& extra) {
  MANTA_ASSIGN(const auto children, extra.objects("connectors"));
  MANTA_TRY(extra.check_all_read());
  if (children.empty()) {
    return error(ErrorCode::kInvalidArgument,
                 "MultiConnector: kv_connector_extra_config.connectors names no connector");
  }
  Connector out;
  std::vector<std::unique_ptr<KvConnectorScheduler>> schedulers;
  std::vector<std::unique_ptr<KvConnectorWorker>> workers;
  int num_pulling = 0;
  for (const std::string& child : children) {
    MANTA_ASSIGN(const ConnectorConfig child_of, child_config(config, child));
    const bool pulls = child_of.kv_connector != "DecodeBenchConnector";
    if (pulls && ++num_pulling > 1) {
      return error(ErrorCode::kInvalidArgument,
                   "MultiConnector: two children answer with kv_transfer_params; only one may");
    }
    MANTA_ASSIGN(Connector made, make_connector(child_of));
    schedulers.push_back(std::move(made.scheduler));
    workers.push_back(std::move(made.worker));
    out.needs_shared_cache |= made.needs_shared_cache;
    if (pulls || out.description.empty()) out.description = made.description;
  }
  out.scheduler = make_multi_scheduler(std::move(schedulers));
  out.worker = make_multi_worker(std::move(workers));
  return out;
}

}  // namespace

Result<Connector> make_connector(const ConnectorConfig& config) {
  MANTA_ASSIGN(ExtraConfig extra, ExtraConfig::parse(config.kv_connector, config.extra_config));
  if (config.kv_connector == "SharedMemoryConnector") return make_shared_memory(config, extra);
  if (config.kv_connector == "NixlConnector") return make_nixl(config, extra);
  if (config.kv_connector == "DecodeBenchConnector") return make_decode_bench(config, extra);
  if (config.kv_connector == "MultiConnector") return make_multi(config, extra);
  return error(ErrorCode::kInvalidArgument,
               fmt::format("kv_connector {}: must be NixlConnector, SharedMemoryConnector, DecodeBenchConnector or "
                           "MultiConnector",
                           config.kv_connector));
}

}  // namespace manta::transfer
