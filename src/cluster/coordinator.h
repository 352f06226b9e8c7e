// The coordinator process of a deployment: keeps the roster, tells every member when it changes. Small messages only.
#pragma once

#include <memory>
#include <string>

#include "base/result.h"
#include "cluster/roster.h"

namespace boost::asio {
class io_context;
}

namespace manta::cluster {

inline constexpr std::chrono::milliseconds kHeartbeatPeriod{250};

class Coordinator {
 public:
  // Listens at once; everything runs on io's thread.
  static Result<std::unique_ptr<Coordinator>> open(boost::asio::io_context& io, const std::string& address,
                                                   Deadlines deadlines);
  virtual ~Coordinator() = default;
  virtual const std::string& address() const = 0;
};

}  // namespace manta::cluster
