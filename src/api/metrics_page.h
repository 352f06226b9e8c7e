// One scrape being written: the parts of /metrics, each in a file of its own.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "api/metrics.h"
#include "api/metrics_text.h"

namespace manta::api {

struct Page {
  MetricsText text;
  Labels model;  // model_name

  Labels with(std::string_view name, std::string value) const {
    Labels labels = model;
    labels.emplace_back(name, std::move(value));
    return labels;
  }
  Labels of_engine(int rank) const { return with("engine", std::to_string(rank)); }
};

// What event loops counted (metrics_requests.cc), what engines say (metrics_engines.cc), what this process uses.
void write_requests(Page& page, const std::vector<std::unique_ptr<MetricsShard>>& shards,
                    const std::vector<int>& ranks);
void write_engines(Page& page, const Metrics::Snapshot& snapshot);
void write_process(Page& page, int64_t num_admitted);

}  // namespace manta::api
