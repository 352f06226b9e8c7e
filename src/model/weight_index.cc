#include "model/weight_index.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <filesystem>
#include <unordered_map>

#include "model/file.h"
#include "model/safetensors.h"

namespace manta::model {

namespace {

constexpr size_t kMaxIndexBytes = 256u << 20;
constexpr size_t kMaxDepth = 8;
constexpr size_t kMaxNameBytes = 1024;
constexpr size_t kMaxFileNameBytes = 255;

Error bad(const std::string& what, std::string message) {
  return error(ErrorCode::kDataLoss, what + ": " + std::move(message));
}

bool is_plain_file_name(std::string_view name) {
  static constexpr std::string_view kSuffix = ".safetensors";
  const auto is_plain = [](char c) { return c != '/' && c != '\\' && static_cast<unsigned char>(c) >= 0x20; };
  return name.size() > kSuffix.size() && name.size() <= kMaxFileNameBytes && name.front() != '.' &&
         name.substr(name.size() - kSuffix.size()) == kSuffix && std::all_of(name.begin(), name.end(), is_plain);
}

Status sort_and_check(WeightIndex& index, const std::string& what) {
  auto& tensors = index.tensors;
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  const auto twice =
      std::adjacent_find(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.name == b.name; });
  return twice == tensors.end() ? Status() : bad(what, fmt::format("tensor '{}' is there twice", twice->name));
}

Result<WeightIndex> index_of_one_file(const std::string& folder, const std::string& name) {
  MANTA_ASSIGN(const auto file, SafetensorsFile::open((std::filesystem::path(folder) / name).string()));
  WeightIndex index;
  index.files.push_back(name);
  for (const TensorEntry& entry : file->tensors()) index.tensors.push_back({entry.name, 0});
  MANTA_TRY(sort_and_check(index, name));
  return index;
}

}  // namespace

int WeightIndex::find(std::string_view name) const {
  const auto it = std::lower_bound(tensors.begin(), tensors.end(), name,
                                   [](const Tensor& t, std::string_view n) { return t.name < n; });
  return it != tensors.end() && it->name == name ? it->file : -1;
}

Result<WeightIndex> parse_weight_index(std::string_view text, const std::string& what) {
  if (text.size() > kMaxIndexBytes) return bad(what, fmt::format("{} bytes, at most {}", text.size(), kMaxIndexBytes));
  simdjson::dom::parser parser;
  simdjson::dom::object root;
  if (parser.allocate(text.size(), kMaxDepth) != simdjson::SUCCESS) return bad(what, "no memory to parse it");
  const auto failed = parser.parse(text.data(), text.size()).get(root);
  if (failed != simdjson::SUCCESS) return bad(what, simdjson::error_message(failed));
  simdjson::dom::object map;
  if (root["weight_map"].get(map) != simdjson::SUCCESS) return bad(what, "weight_map is not an object");

  WeightIndex index;
  std::unordered_map<std::string_view, int> file_numbers;  // views into the parser's document
  for (const auto field : map) {
    std::string_view file;
    if (field.key.empty() || field.key.size() > kMaxNameBytes) {
      return bad(what, fmt::format("a tensor name of {} bytes, 1 to {} are allowed", field.key.size(), kMaxNameBytes));
    }
    if (field.value.get(file) != simdjson::SUCCESS || !is_plain_file_name(file)) {
      return bad(what, fmt::format("tensor '{}': its file is not the name of a .safetensors file in the same folder",
                                   field.key));
    }
    const auto [at, is_new] = file_numbers.emplace(file, static_cast<int>(index.files.size()));
    if (is_new) index.files.emplace_back(file);
    index.tensors.push_back({std::string(field.key), at->second});
  }
  if (index.tensors.empty()) return bad(what, "weight_map is empty");
  MANTA_TRY(sort_and_check(index, what));
  return index;
}

Result<WeightIndex> load_weight_index(const std::string& folder) {
  static constexpr const char* kIndexName = "model.safetensors.index.json";
  static constexpr const char* kSingleName = "model.safetensors";
  const std::string path = (std::filesystem::path(folder) / kIndexName).string();
  const auto text = read_small_file(path, kMaxIndexBytes);
  if (text.ok()) return parse_weight_index(*text, path);
  if (text.error().code != ErrorCode::kNotFound) return text.error();
  auto index = index_of_one_file(folder, kSingleName);
  if (!index.ok() && index.error().code == ErrorCode::kNotFound) {
    return error(ErrorCode::kNotFound,
                 fmt::format("{}: has neither {} nor {}; --load-format dummy runs without weights", folder, kIndexName,
                             kSingleName));
  }
  return index;
}

}  // namespace manta::model
