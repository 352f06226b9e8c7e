// Prometheus' text exposition format 0.0.4.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace manta::api {

using Labels = std::vector<std::pair<std::string_view, std::string>>;

class MetricsText {
 public:
  explicit MetricsText(std::string& out) : out_(out) {}

  // # HELP and # TYPE; type is counter, gauge or histogram. A counter's name ends in _total.
  void family(std::string_view name, std::string_view type, std::string_view help);
  // Samples of the family begun last.
  void sample(const Labels& labels, double value);
  void sample(const Labels& labels, uint64_t value);
  // counts: per bucket, one more than bounds, not yet cumulative.
  void histogram(const Labels& labels, std::span<const double> bounds, std::span<const uint64_t> counts, double sum);

 private:
  void write(std::string_view suffix, const Labels& labels, std::string_view le, std::string_view value);

  std::string& out_;
  std::string name_;
};

}  // namespace manta::api
