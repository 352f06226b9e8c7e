#include "manta/kv_transfer.h"

#include <fstream>
#include <iterator>

#include "model/digest.h"

namespace manta {
namespace {

// Two deployments of one checkpoint may keep it in different folders: its configuration names it.
Result<std::string> model_fingerprint(const Settings& s) {
  std::ifstream in(s.model + "/config.json", std::ios::binary);
  if (!in) return error(ErrorCode::kNotFound, s.model + "/config.json cannot be read");
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  model::Digest digest = model::Digest::git_blob(text.size());
  digest.add(text);
  return digest.hex() + " " + s.hf_overrides.text;
}

}  // namespace

Result<transfer::Connector> make_kv_connector(const Settings& s, int rank) {
  const KvTransferConfig& kv = s.kv_transfer_config;
  if (!kv.kv_connector) return transfer::Connector{};
  if (s.executor == "fake") {
    return error(ErrorCode::kInvalidArgument, "kv_transfer_config: the fake executor has no cache rows to transfer");
  }
  transfer::ConnectorConfig config;
  config.kv_connector = *kv.kv_connector;
  config.kv_role = kv.kv_role.value_or("kv_both");
  config.extra_config = kv.kv_connector_extra_config.text;
  config.engine_id = kv.engine_id.value_or("");
  config.rank = rank;
  config.host = s.nixl_side_channel_host;
  config.port = static_cast<int>(s.nixl_side_channel_port);
  config.unclaimed = std::chrono::seconds(s.nixl_abort_request_timeout);
  config.nixl_lib = s.nixl_lib.value_or("");
  config.block_size = static_cast<int>(s.block_size);
  MANTA_ASSIGN(std::string fingerprint, model_fingerprint(s));
  config.compatibility = {{"model (config.json, hf_overrides)", std::move(fingerprint)},
                          {"cpu_backend", s.cpu_backend},
                          {"fp8_activations", s.fp8_activations},
                          {"load_format", s.load_format == "dummy" ? "dummy" : "checkpoint"}};
  return transfer::make_connector(config);
}

}  // namespace manta
