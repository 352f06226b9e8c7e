#include "transfer/make_connector.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <random>

#include "transfer/extra_config.h"
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

Result<Connector> make_pulling(const ConnectorConfig& config, const LeaseKeys& keys, std::unique_ptr<BlockMover> mover) {
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
  out.description = json{{"kv_connector", config.kv_connector},
                         {"kv_role", config.kv_role},
                         {"engine_id", scheduler.engine_id},
                         {"host", scheduler.host},
                         {"port", scheduler.port}}
                        .dump();
  out.scheduler = make_pull_scheduler(std::move(scheduler));
  out.worker = std::move(exchange);
  return out;
}

}  // namespace

Result<Connector> make_connector(const ConnectorConfig& config) {
  MANTA_ASSIGN(ExtraConfig extra, ExtraConfig::parse(config.kv_connector, config.extra_config));
  if (config.kv_connector == "SharedMemoryConnector") {
    MANTA_ASSIGN(const LeaseKeys keys, read_lease_keys(extra));
    MANTA_TRY(extra.check_all_read());
    MANTA_ASSIGN(Connector out, make_pulling(config, keys, make_shared_memory_mover()));
    out.needs_shared_cache = true;
    return out;
  }
  return error(ErrorCode::kUnimplemented, fmt::format("kv_connector {}: not known", config.kv_connector));
}

}  // namespace manta::transfer
