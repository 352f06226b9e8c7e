// GET /metrics of the router: asks every api process for its page, and answers with all of them as one.
#pragma once

#include <boost/asio/io_context.hpp>
#include <string>
#include <vector>

#include "api/http/message.h"
#include "router/metrics_merge.h"
#include "router/pool.h"

namespace manta::router {

struct MetricsSource {
  Link* link;
  MetricsMerger::Labels labels;
};

// A process that does not answer within two seconds is left out. merged has the router's own page already.
void answer_metrics(boost::asio::io_context& io, std::vector<MetricsSource> sources, MetricsMerger merged,
                    api::ResponseWriterPtr writer);

}  // namespace manta::router
