// What a load test found: percentiles, rates, a table for people, JSON for programs, a plot for both.
#pragma once

#include <string>
#include <vector>

#include "manta/bench/load_client.h"

namespace manta::bench {

struct Distribution {
  std::vector<double> sorted;  // seconds
  double mean() const;
  double percentile(double p) const;  // [0, 100], linear between neighbours; 0 for an empty one
};

struct Report {
  int num_requests = 0;
  int num_ok = 0;
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  double duration_s = 0;
  Distribution ttft;                // first chunk after the request was sent
  Distribution itl;                 // between neighbouring chunks
  Distribution tpot;                // (end - first chunk) / (output tokens - 1), per request
  Distribution e2e;                 // end after sending
  std::vector<std::string> errors;  // distinct, with how often: "3 x HTTP 503: …"
};

Report make_report(const std::vector<RequestRecord>& records);
std::string to_table(const Report& report);
// setup: what was run, as JSON text, put into the object under "setup".
std::string to_json(const Report& report, const std::string& setup);
// Cumulative distributions of TTFT, ITL and E2E on a logarithmic time axis.
std::string to_svg(const Report& report, const std::string& title);

}  // namespace manta::bench
