// DecodeBenchConnector: every fresh prompt counts as prefilled elsewhere, all but its last token, and its rows are made
// up: what decode costs at a context length, without computing the context. The text means nothing.
#pragma once

#include <memory>

#include "transfer/kv_connector.h"

namespace manta::transfer {

struct DecodeBenchOptions {
  double fill_mean = 0.015;
  double fill_std = 0.0;  // 0: every value is the mean
  int block_size = 64;
};

std::unique_ptr<KvConnectorScheduler> make_decode_bench_scheduler(const DecodeBenchOptions& options);
std::unique_ptr<KvConnectorWorker> make_decode_bench_worker(const DecodeBenchOptions& options);

}  // namespace manta::transfer
