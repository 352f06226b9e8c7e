#include "router/metrics_merge.h"

#include <fmt/format.h>

namespace manta::router {
namespace {

// "# TYPE name type" -> name; empty for samples and other comments.
std::string_view name_of_comment(std::string_view line) {
  if (!line.starts_with("# HELP ") && !line.starts_with("# TYPE ")) return {};
  const std::string_view rest = line.substr(7);
  return rest.substr(0, rest.find(' '));
}

void append_sample(std::string& out, std::string_view line, const MetricsMerger::Labels& labels) {
  const size_t name_end = line.find_first_of("{ ");
  if (name_end == std::string_view::npos) return;
  const bool has_labels = line[name_end] == '{';
  const std::string_view own = has_labels ? line.substr(name_end + 1) : std::string_view();
  std::string added;
  for (const auto& [key, value] : labels) {
    const std::string start = key + "=\"";
    if (own.starts_with(start) || own.find("," + start) != std::string_view::npos) continue;
    added += fmt::format("{}{}=\"{}\"", added.empty() ? "" : ",", key, value);
  }
  out += line.substr(0, name_end);
  if (has_labels) {
    out += '{';
    out += added;
    if (!added.empty() && !own.starts_with('}')) out += ',';
    out += own;
  } else {
    if (!added.empty()) out += "{" + added + "}";
    out += line.substr(name_end);
  }
  out += '\n';
}

}  // namespace

MetricsMerger::Family& MetricsMerger::family(std::string_view name) {
  const auto it = families_.find(name);
  if (it != families_.end()) return it->second;
  order_.emplace_back(name);
  return families_[std::string(name)];
}

void MetricsMerger::add(std::string_view page, const Labels& labels) {
  Family* current = nullptr;
  bool is_new = false;
  while (!page.empty()) {
    const size_t end = page.find('\n');
    const std::string_view line = page.substr(0, end);
    page = end == std::string_view::npos ? std::string_view() : page.substr(end + 1);
    if (line.empty()) continue;
    if (const std::string_view name = name_of_comment(line); !name.empty()) {
      Family& next = family(name);
      if (&next != current) is_new = next.comments.empty();
      current = &next;
      if (is_new) current->comments.append(line).append("\n");
    } else if (line[0] != '#') {
      if (current == nullptr) current = &family(line.substr(0, line.find_first_of("{ ")));
      append_sample(current->samples, line, labels);
    }
  }
}

std::string MetricsMerger::page() const {
  std::string out;
  for (const auto& name : order_) {
    const Family& family = families_.find(name)->second;
    out += family.comments;
    out += family.samples;
  }
  return out;
}

}  // namespace manta::router
