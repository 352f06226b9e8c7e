// What the HTTP side needs of the engines. One per event loop, used on its thread only. engine::EngineClient in the
// product; a script in tests.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "engine/client.h"
#include "engine/messages.h"

namespace manta::api {

class Generator {
 public:
  using OnOutput = engine::EngineClient::OnOutput;

  virtual ~Generator() = default;
  // The members mean what they mean in engine/client.h.
  virtual Result<RequestId> submit(engine::Submit submit, OnOutput on_output,
                                   std::optional<int> data_parallel_rank) = 0;
  virtual void abort(RequestId id) = 0;
  virtual std::optional<engine::Welcome> model() const = 0;
  virtual bool ready() const = 0;
  virtual std::vector<engine::EngineView> engines() const = 0;
  virtual std::optional<int> rank_of(RequestId id) const = 0;
  virtual void on_resubmit(std::function<void(int lost_rank, engine::ResubmitReason reason)> told) = 0;
};

// relay_address: where this loop takes routers; empty: nowhere.
using GeneratorFactory =
    std::function<std::unique_ptr<Generator>(boost::asio::io_context& io, int loop, const std::string& relay_address)>;

// Generators that follow the deployment's coordinator ("unix:@name", "tcp:host:port"). on_complete runs once per loop,
// on its thread, when that loop can send requests to all engines of the range.
GeneratorFactory engine_generators(const std::string& coordinator, engine::RankRange ranks,
                                   std::function<void()> on_complete);

}  // namespace manta::api
