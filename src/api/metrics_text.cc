#include "api/metrics_text.h"

#include <fmt/format.h>

#include <cmath>

namespace manta::api {
namespace {

void append_label_value(std::string& out, std::string_view value) {
  for (const char c : value) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
}

std::string number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "+Inf" : "-Inf";
  return fmt::format("{}", value);
}

}  // namespace

void MetricsText::family(std::string_view name, std::string_view type, std::string_view help) {
  name_ = name;
  out_ += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
}

void MetricsText::write(std::string_view suffix, const Labels& labels, std::string_view le, std::string_view value) {
  out_ += name_;
  out_ += suffix;
  char separator = '{';
  const auto label = [&](std::string_view name, std::string_view text) {
    out_ += separator;
    out_ += name;
    out_ += "=\"";
    append_label_value(out_, text);
    out_ += '"';
    separator = ',';
  };
  for (const auto& [name, text] : labels) label(name, text);
  if (!le.empty()) label("le", le);
  if (separator == ',') out_ += '}';
  out_ += ' ';
  out_ += value;
  out_ += '\n';
}

void MetricsText::sample(const Labels& labels, double value) {
  write("", labels, "", number(value));
}

void MetricsText::sample(const Labels& labels, uint64_t value) {
  write("", labels, "", fmt::format_int(value).str());
}

void MetricsText::histogram(const Labels& labels, std::span<const double> bounds, std::span<const uint64_t> counts,
                            double sum) {
  uint64_t total = 0;
  for (size_t i = 0; i < bounds.size(); ++i) {
    total += counts[i];
    write("_bucket", labels, number(bounds[i]), fmt::format_int(total).str());
  }
  total += counts[bounds.size()];
  const std::string count = fmt::format_int(total).str();
  write("_bucket", labels, "+Inf", count);
  write("_count", labels, "", count);
  write("_sum", labels, "", number(sum));
}

}  // namespace manta::api
