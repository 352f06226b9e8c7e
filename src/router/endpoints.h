// The --endpoints file of a router: which coordinators lead to which ranks. Whoever deploys writes it anew (whole, by
// renaming) when deployments come and go.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"

namespace manta::router {

struct Endpoints {
  std::vector<std::string> prefill;  // coordinators' addresses; empty: decode ranks compute the prompts too
  std::vector<std::string> decode;   // or of ranks that do both ("mixed")
  bool operator==(const Endpoints&) const = default;
};

// {"prefill": ["tcp:host:port"], "decode": […]} or {"mixed": […]}. kInvalidArgument and kNotFound name the file.
Result<Endpoints> read_endpoints(const std::string& path);

// Looks at the file twice a second; on_change gets what a changed one says. A file that cannot be read is reported once
// and changes nothing.
class EndpointsWatch {
 public:
  EndpointsWatch(boost::asio::io_context& io, std::string path, std::function<void(const Endpoints&)> on_change);
  ~EndpointsWatch();
  EndpointsWatch(const EndpointsWatch&) = delete;
  EndpointsWatch& operator=(const EndpointsWatch&) = delete;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace manta::router
