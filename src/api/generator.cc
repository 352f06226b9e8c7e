#include "api/generator.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/ip/host_name.hpp>
#include <utility>

namespace manta::api {
namespace {

class EngineGenerator : public Generator {
 public:
  EngineGenerator(boost::asio::io_context& io, engine::ClientOptions options, std::function<void()> on_complete)
      : num_engines_(options.ranks.count), client_(io, std::move(options)), on_complete_(std::move(on_complete)) {
    client_.start([this] { tell_when_complete(); });
  }

  Result<RequestId> submit(engine::Submit submit, OnOutput on_output, std::optional<int> rank) override {
    return client_.submit(std::move(submit), std::move(on_output), rank);
  }
  void abort(RequestId id) override { client_.abort(id); }
  std::optional<engine::Welcome> model() const override { return client_.model(); }
  bool ready() const override { return client_.ready(); }
  std::vector<engine::EngineView> engines() const override { return client_.engines(); }
  std::optional<int> rank_of(RequestId id) const override { return client_.rank_of(id); }
  void on_resubmit(std::function<void(int, engine::ResubmitReason)> told) override {
    client_.on_resubmit(std::move(told));
  }

 private:
  void tell_when_complete() {
    if (!on_complete_) return;
    const auto engines = client_.engines();
    const auto is_ready = [](const engine::EngineView& e) { return e.state == "ready"; };
    if (std::count_if(engines.begin(), engines.end(), is_ready) < num_engines_) return;
    std::exchange(on_complete_, nullptr)();
  }

  int num_engines_;
  engine::EngineClient client_;
  std::function<void()> on_complete_;  // null once called
};

}  // namespace

GeneratorFactory engine_generators(const std::string& coordinator, engine::RankRange ranks,
                                   std::function<void()> on_complete) {
  return [=](boost::asio::io_context& io, int loop, const std::string& relay_address) -> std::unique_ptr<Generator> {
    engine::ClientOptions options{.coordinator = coordinator,
                                  .process = fmt::format("api pid {} loop {}", ::getpid(), loop),
                                  .address = relay_address,
                                  .host = boost::asio::ip::host_name(),
                                  .ranks = ranks};
    return std::make_unique<EngineGenerator>(io, std::move(options), on_complete);
  };
}

}  // namespace manta::api
