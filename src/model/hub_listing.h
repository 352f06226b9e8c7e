// What the Hub says about a revision of a model: /api/models/<id>/revision/<revision>?blobs=true
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace manta::model {

struct HubFile {
  std::string name;
  uint64_t num_bytes = 0;
  std::string sha256;   // of files in large file storage, else empty
  std::string blob_id;  // git's hash (SHA-1) of the others

  const std::string& etag() const { return sha256.empty() ? blob_id : sha256; }  // their name in the cache
};

struct HubListing {
  std::string commit;
  std::vector<HubFile> files;  // those that serving needs: configs, tokenizer, chat template, safetensors
};

// The answer is somebody else's input: names, sizes and hashes are checked. kDataLoss says what is wrong.
Result<HubListing> parse_hub_listing(std::string_view json);

}  // namespace manta::model
