#include "base/settings/yaml_json.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <charconv>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

namespace manta::settings {

using nlohmann::json;

namespace {

constexpr int kMaxNodes = 100'000;
constexpr int kMaxDepth = 64;

Error bad(const YAML::Node& node, std::string_view what) {
  return error(ErrorCode::kInvalidArgument,
               fmt::format("line {}, column {}: {}", node.Mark().line + 1, node.Mark().column + 1, what));
}

template <typename T>
bool parse_whole(const std::string& text, T& out) {
  const char* begin = text.data() + (text.starts_with('+') ? 1 : 0);
  const auto [end, code] = std::from_chars(begin, text.data() + text.size(), out);
  return code == std::errc() && end == text.data() + text.size();
}

json scalar(const YAML::Node& node) {
  const std::string& text = node.Scalar();
  if (node.Tag() == "!") return text;  // quoted
  if (text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL") return nullptr;
  if (text == "true" || text == "True" || text == "TRUE") return true;
  if (text == "false" || text == "False" || text == "FALSE") return false;
  int64_t integer = 0;
  if (parse_whole(text, integer)) return integer;
  double real = 0;
  // from_chars also reads inf and nan, which YAML writes with a dot and no setting wants.
  if (text.find_first_of("0123456789") != std::string::npos && parse_whole(text, real)) return real;
  return text;
}

class Converter {
 public:
  Result<json> convert(const YAML::Node& node, int depth) {
    if (++nodes_ > kMaxNodes) return bad(node, fmt::format("more than {} nodes", kMaxNodes));
    if (depth > kMaxDepth) return bad(node, fmt::format("nested deeper than {}", kMaxDepth));
    switch (node.Type()) {
      case YAML::NodeType::Undefined:
      case YAML::NodeType::Null: return json(nullptr);
      case YAML::NodeType::Scalar: return scalar(node);
      case YAML::NodeType::Sequence: return sequence(node, depth);
      case YAML::NodeType::Map: return mapping(node, depth);
    }
    return bad(node, "unknown kind of node");
  }

 private:
  Result<json> sequence(const YAML::Node& node, int depth) {
    json out = json::array();
    for (const YAML::Node& element : node) {
      MANTA_ASSIGN(json one, convert(element, depth + 1));
      out.push_back(std::move(one));
    }
    return out;
  }

  Result<json> mapping(const YAML::Node& node, int depth) {
    json out = json::object();
    for (const auto& pair : node) {
      if (!pair.first.IsScalar()) return bad(pair.first, "a key must be a plain word");
      const std::string& key = pair.first.Scalar();
      if (out.contains(key)) return bad(pair.first, fmt::format("key \"{}\" is given twice", key));
      MANTA_ASSIGN(json one, convert(pair.second, depth + 1));
      out[key] = std::move(one);
    }
    return out;
  }

  int nodes_ = 0;
};

}  // namespace

Result<json> yaml_to_json(const std::string& text) {
  try {
    return Converter().convert(YAML::Load(text), 0);
  } catch (const YAML::Exception& e) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("line {}, column {}: {}", e.mark.line + 1, e.mark.column + 1, e.msg));
  }
}

Result<json> read_yaml(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) return error(ErrorCode::kNotFound, fmt::format("{}: cannot be read", path));
  auto out = yaml_to_json(text.str());
  if (!out.ok()) return error(out.error().code, fmt::format("{}: {}", path, out.error().message));
  return out;
}

}  // namespace manta::settings
