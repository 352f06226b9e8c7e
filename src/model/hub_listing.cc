#include "model/hub_listing.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <cctype>

#include "model/hub_cache.h"

namespace manta::model {

namespace {

using simdjson::SUCCESS;

constexpr size_t kMaxNameBytes = 255;
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 44;  // far above every file of the Hub; sums cannot overflow

Error bad(std::string message) {
  return error(ErrorCode::kDataLoss, "the Hub's list of files: " + std::move(message));
}

bool ends_with(std::string_view name, std::string_view suffix) {
  return name.size() > suffix.size() && name.substr(name.size() - suffix.size()) == suffix;
}

// Top-level files of the kinds that are read; a name that could leave the folder is never one.
bool is_wanted(std::string_view name) {
  return name.size() <= kMaxNameBytes && name.front() != '.' &&
         std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_' || c == '.'; }) &&
         (ends_with(name, ".json") || ends_with(name, ".jinja") || ends_with(name, ".safetensors"));
}

bool is_hex(std::string_view text, size_t digits) {
  return text.size() == digits &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isxdigit(c); });
}

Result<HubFile> read_file(simdjson::dom::object entry, std::string_view name) {
  HubFile file;
  file.name = name;
  if (entry["size"].get(file.num_bytes) != SUCCESS || file.num_bytes > kMaxFileBytes) {
    return bad(fmt::format("{} has no size, or one above {} bytes", name, kMaxFileBytes));
  }
  std::string_view hash;
  simdjson::dom::object lfs;
  if (entry["lfs"].get(lfs) == SUCCESS) {
    if (lfs["sha256"].get(hash) != SUCCESS || !is_hex(hash, 64)) return bad(fmt::format("{} has no SHA-256", name));
    file.sha256 = hash;
  } else {
    if (entry["blobId"].get(hash) != SUCCESS || !is_hex(hash, 40)) return bad(fmt::format("{} has no blobId", name));
    file.blob_id = hash;
  }
  return file;
}

}  // namespace

Result<HubListing> parse_hub_listing(std::string_view json) {
  simdjson::dom::parser parser;
  simdjson::dom::object root;
  std::string_view commit;
  simdjson::dom::array siblings;
  if (parser.parse(json.data(), json.size()).get(root) != SUCCESS) return bad("is not a JSON object");
  if (root["sha"].get(commit) != SUCCESS || !is_commit(commit)) return bad("has no commit (sha)");
  if (root["siblings"].get(siblings) != SUCCESS) return bad("has no siblings");
  HubListing listing;
  listing.commit = commit;
  for (const auto item : siblings) {
    simdjson::dom::object entry;
    std::string_view name;
    if (item.get(entry) != SUCCESS || entry["rfilename"].get(name) != SUCCESS || name.empty()) {
      return bad("an entry has no rfilename");
    }
    if (!is_wanted(name)) continue;
    MANTA_ASSIGN(HubFile file, read_file(entry, name));
    listing.files.push_back(std::move(file));
  }
  if (listing.files.empty()) return bad("holds nothing to serve (no .json or .safetensors)");
  return listing;
}

}  // namespace manta::model
