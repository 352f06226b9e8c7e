#include "api/generator.h"

#include <fmt/format.h>
#include <unistd.h>

#include <utility>

namespace manta::api {
namespace {

class EngineGenerator : public Generator {
 public:
  EngineGenerator(boost::asio::io_context& io, engine::ClientOptions options) : client_(io, std::move(options)) {
    client_.start([] {});
  }

  Result<RequestId> submit(engine::Submit submit, OnOutput on_output, std::optional<int> rank) override {
    return client_.submit(std::move(submit), std::move(on_output), rank);
  }
  void abort(RequestId id) override { client_.abort(id); }
  std::optional<engine::Welcome> model() const override { return client_.model(); }
  bool ready() const override { return client_.ready(); }
  std::vector<engine::EngineView> engines() const override { return client_.engines(); }

 private:
  engine::EngineClient client_;
};

}  // namespace

GeneratorFactory engine_generators(const std::string& coordinator) {
  return [coordinator](boost::asio::io_context& io, int loop) -> std::unique_ptr<Generator> {
    return std::make_unique<EngineGenerator>(
        io, engine::ClientOptions{.coordinator = coordinator,
                                  .process = fmt::format("api pid {} loop {}", ::getpid(), loop)});
  };
}

}  // namespace manta::api
