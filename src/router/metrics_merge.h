// Several processes' /metrics pages as one.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace manta::router {

class MetricsMerger {
 public:
  using Labels = std::vector<std::pair<std::string, std::string>>;

  // page: text exposition format 0.0.4. Every sample gets the labels, except those it has. Values are not summed:
  // each process keeps its own series.
  void add(std::string_view page, const Labels& labels);
  std::string page() const;

 private:
  struct Family {
    std::string comments;  // # HELP and # TYPE
    std::string samples;
  };
  Family& family(std::string_view name);

  std::map<std::string, Family, std::less<>> families_;
  std::vector<std::string> order_;
};

}  // namespace manta::router
