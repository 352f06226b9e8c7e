// Sends a workload to an OpenAI-compatible server and writes down when every chunk came. One thread; one connection per
// request in flight, kept alive between requests.
#pragma once

#include <string>
#include <vector>

#include "manta/bench/workload.h"
#include "manta/http/event_stream.h"

namespace manta::bench {

struct RequestRecord {
  double start_s = 0;            // when it was sent, after the test's begin
  std::vector<double> chunks_s;  // when each chunk with content came
  double end_s = 0;
  int prompt_tokens = 0;  // as the server's usage says
  int output_tokens = 0;
  std::string error;  // empty: it ended well
  bool ok() const { return error.empty(); }
};

// Runs the whole workload, at most `concurrency` requests in flight; records are in the order of the requests.
std::vector<RequestRecord> run_load(const http_client::ServerAddress& server, int concurrency,
                                    const std::vector<LoadRequest>& requests);

}  // namespace manta::bench
