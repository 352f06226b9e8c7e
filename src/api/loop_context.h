// What the handlers of one event loop share: the process's read-only parts, and this loop's own.
#pragma once

#include <atomic>
#include <random>

#include "api/admission.h"
#include "api/generator.h"
#include "api/metrics.h"
#include "api/offload.h"
#include "api/openai/field.h"
#include "api/openai/served_model.h"
#include "base/settings.h"

namespace manta::api {

struct LoopContext {
  const Settings& settings;
  const ServedModel& model;
  Admission& admission;
  Metrics& metrics;  // of the process, for /metrics
  MetricsShard& shard;
  Generator& generator;
  std::mt19937_64& random;  // seeds of requests that bring none; follows --seed
  std::mt19937_64& ids;     // request ids; differs from start to start
  JsonParser& json;
  Offload& offload;  // for what would hold the loop up
  const std::atomic<bool>& draining;
};

}  // namespace manta::api
