// What a load test sends and when: the requests, made before the clock starts, so that making them costs nothing later.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"

namespace manta::bench {

struct WorkloadOptions {
  std::string model;
  int num_requests = 100;
  int input_len = 128;    // prompt tokens of a generated request
  int output_len = 128;   // max_tokens; with ignore_eos exactly so many
  int prefix_len = 0;     // of those, leading tokens that all requests share
  int vocab_size = 4000;  // generated prompts are token ids in [3, vocab_size)
  bool ignore_eos = true;
  double request_rate = 0;  // per second, Poisson arrivals; 0 = as fast as concurrency allows
  uint64_t seed = 0;
  // One JSON object per line: {"messages": […]} or {"prompt": …}, other fields are sent as they stand. Repeated when
  // there are fewer lines than requests.
  std::optional<std::string> dataset;
};

struct LoadRequest {
  std::string target;  // "/v1/completions" or "/v1/chat/completions"
  std::string body;    // JSON, stream with usage
  double start_s = 0;  // after the test's begin; 0 without a rate
};

// Fails naming file and line for a dataset that cannot be read.
Result<std::vector<LoadRequest>> make_workload(const WorkloadOptions& options);

}  // namespace manta::bench
