// The seam for a server that has no engines of its own (the router): it answers requests in the place of the handlers
// in routes.cc. One per event loop, used on its thread only.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>

#include "api/http/message.h"
#include "api/loop_context.h"

namespace manta::api {

struct Route;

class Front {
 public:
  virtual ~Front() = default;
  // True: it is or will be answered through writer. False: the route's own handler shall.
  virtual bool answer(const Route& route, HttpRequest& request, const ResponseWriterPtr& writer) = 0;
};

// Called on the loop that starts, before it runs. context outlives the front.
using FrontFactory =
    std::function<std::unique_ptr<Front>(boost::asio::io_context& io, int loop, const LoopContext& context)>;

}  // namespace manta::api
