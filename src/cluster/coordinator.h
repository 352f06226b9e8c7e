// The coordinator process of a deployment: keeps the roster, tells every member when it changes, and counts the votes
// of a lock-step group. Small messages only.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "cluster/roster.h"

namespace boost::asio {
class io_context;
}

namespace manta::cluster {

inline constexpr std::chrono::milliseconds kHeartbeatPeriod{250};

struct CoordinatorOptions {
  Deadlines deadlines;
  // Ranks that step in lock-step (expert parallelism); 0: every engine for itself, until one joins and says otherwise.
  int group_size = 0;
  // What the shared settings of every member must be; empty: what the first one brings.
  std::vector<std::pair<std::string, std::string>> shared_config;
};

class Coordinator {
 public:
  // Listens at once; everything runs on io's thread.
  static Result<std::unique_ptr<Coordinator>> open(boost::asio::io_context& io, const std::string& address,
                                                   CoordinatorOptions options);
  virtual ~Coordinator() = default;
  virtual const std::string& address() const = 0;
};

}  // namespace manta::cluster
