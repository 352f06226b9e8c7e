#include "transfer/transfer_params.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace manta::transfer {
namespace {

using nlohmann::json;

constexpr size_t kMaxHostBytes = 253;  // of a DNS name

Error invalid(std::string message) {
  return error(ErrorCode::kInvalidArgument, "kv_transfer_params." + std::move(message));
}

// Proxies send every key, null where they have nothing.
const json* find(const json& object, const char* key) {
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

Status read(const json& object, const char* key, bool& out) {
  const json* value = find(object, key);
  if (value == nullptr) return {};
  if (!value->is_boolean()) return invalid(fmt::format("{} must be true or false, got {}", key, value->dump()));
  out = value->get<bool>();
  return {};
}

Status read(const json& object, const char* key, std::string& out) {
  const json* value = find(object, key);
  if (value == nullptr) return {};
  if (!value->is_string()) return invalid(fmt::format("{} must be a string, got {}", key, value->dump()));
  out = value->get<std::string>();
  return {};
}

Status read(const json& object, const char* key, int least, int most, int& out) {
  const json* value = find(object, key);
  if (value == nullptr) return {};
  const bool fits = value->is_number_integer() && *value >= least && *value <= most;
  if (!fits) return invalid(fmt::format("{} must be in [{}, {}], got {}", key, least, most, value->dump()));
  out = value->get<int>();
  return {};
}

// [1, 2] as vLLM had it, or [[1, 2]], a list for each KV group, of which DeepSeek has one.
Status read_blocks(const json& object, TransferParams& out) {
  const json* value = find(object, "remote_block_ids");
  if (value == nullptr) return {};
  if (value->is_array() && value->size() == 1 && value->front().is_array()) value = &value->front();
  bool numbers = value->is_array();
  for (const json& id : numbers ? *value : json::array()) numbers = numbers && id.is_number_unsigned();
  if (!numbers) {
    return invalid(
        fmt::format("remote_block_ids must be a list of block ids, or a list of one such list (one KV group), got {}",
                    value->dump().substr(0, 80)));
  }
  out.num_remote_blocks = static_cast<int>(value->size());
  return {};
}

Status check(const TransferParams& p) {
  if (p.do_remote_decode && p.do_remote_prefill) {
    return invalid("do_remote_decode and do_remote_prefill are both true; a request is prefilled here or pulled here");
  }
  if (!p.do_remote_prefill) return {};
  const auto missing = [](const char* key, const char* why) {
    return invalid(fmt::format("{} is missing, and do_remote_prefill is true: {}", key, why));
  };
  const char* from_the_answer = "pass on the kv_transfer_params of the prefill's answer";
  if (p.remote_host.empty()) return missing("remote_host", from_the_answer);
  if (p.remote_host.size() > kMaxHostBytes) {
    return invalid(fmt::format("remote_host has {} bytes, a host name at most {}; {}", p.remote_host.size(),
                               kMaxHostBytes, from_the_answer));
  }
  if (p.remote_port == 0) return missing("remote_port", from_the_answer);
  if (p.remote_engine_id.empty()) return missing("remote_engine_id", from_the_answer);
  if (p.key().empty()) return missing("remote_request_id", "pass on the prefill's answer, or give a transfer_id");
  return {};
}

}  // namespace

Result<TransferParams> parse_transfer_params(const std::string& text) {
  TransferParams p;
  if (text.empty()) return p;
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    return error(ErrorCode::kInvalidArgument, "kv_transfer_params must be an object, got " + text.substr(0, 80));
  }
  MANTA_TRY(read(object, "do_remote_decode", p.do_remote_decode));
  MANTA_TRY(read(object, "do_remote_prefill", p.do_remote_prefill));
  MANTA_TRY(read(object, "transfer_id", p.transfer_id));
  MANTA_TRY(read(object, "remote_engine_id", p.remote_engine_id));
  MANTA_TRY(read(object, "remote_host", p.remote_host));
  MANTA_TRY(read(object, "remote_port", 1, 65535, p.remote_port));
  MANTA_TRY(read(object, "remote_request_id", p.remote_request_id));
  MANTA_TRY(read(object, "num_readers", 1, 1 << 20, p.num_readers));
  MANTA_TRY(read_blocks(object, p));
  MANTA_TRY(check(p));
  return p;
}

std::string format_transfer_answer(const TransferAnswer& a) {
  return json{{"do_remote_prefill", true},
              {"do_remote_decode", false},
              {"remote_engine_id", a.engine_id},
              {"remote_host", a.host},
              {"remote_port", a.port},
              {"remote_request_id", a.request_id},
              {"remote_block_ids", a.blocks},
              {"remote_num_tokens", a.num_tokens},
              {"tp_size", 1},
              {"dcp_size", 1},
              {"pp_size", 1}}
      .dump();
}

}  // namespace manta::transfer
