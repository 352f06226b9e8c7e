// kv_transfer_params: what a request says about its other half, and what a prefill answers. The names and shapes are
// vLLM's, of both generations, so that other systems' proxies can drive us; they pass the answer on unread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"

namespace manta::transfer {

struct TransferParams {
  bool do_remote_decode = false;   // somebody else decodes: keep the blocks, answer where they are
  bool do_remote_prefill = false;  // somebody else has prefilled, or will: pull
  std::string transfer_id;         // manta's router: names both halves, so that the pull may begin before the answer
  std::string remote_engine_id;
  std::string remote_host;
  int remote_port = 0;
  std::string remote_request_id;         // of the lease; from the prefill's answer
  std::optional<int> num_remote_blocks;  // blocks the answer listed; not known with a transfer_id
  int num_readers = 1;                   // requests that pull the same lease (n > 1)

  // What the lease is called at its owner.
  const std::string& key() const { return remote_request_id.empty() ? transfer_id : remote_request_id; }
};

// Empty text: neither flag. kInvalidArgument names the field, its value and what was expected. A request that asks to
// pull must say from where: a silent second prefill is what a user would call slow and never find.
Result<TransferParams> parse_transfer_params(const std::string& json);

struct TransferAnswer {
  std::string engine_id;
  std::string host;
  int port = 0;
  std::string request_id;
  std::vector<BlockId> blocks;
  int num_tokens = 0;
};
std::string format_transfer_answer(const TransferAnswer& answer);  // a JSON object

}  // namespace manta::transfer
