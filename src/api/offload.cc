#include "api/offload.h"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <utility>

namespace manta::api {

namespace asio = boost::asio;

void Offload::run(size_t num_bytes, const ResponseWriterPtr& writer, std::function<void()> work,
                  std::function<void()> then) {
  if (num_bytes < kMinBytes) {
    work();
    return then();
  }
  // The guard keeps a loop that is stopping until its last work is back. What the closures hold dies on the loop.
  asio::post(pool_.threads, [&io = io_, guard = asio::make_work_guard(io_), writer, work = std::move(work),
                             then = std::move(then)]() mutable {
    work();
    asio::post(io, [writer = std::move(writer), work = std::move(work), then = std::move(then)] {
      if (!writer->gone()) then();
    });
  });
}

}  // namespace manta::api
