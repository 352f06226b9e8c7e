// The front-end's side of the engines: one EngineClient per event loop, used from that loop's thread only.
// It follows the coordinator's membership, keeps a connection to every engine, picks one for each request, and sees to
// it that every request ends: the last output carries a finish reason or an error, also when an engine dies.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "engine/messages.h"

namespace boost::asio {
class io_context;
}

namespace manta::engine {

// One engine as this front-end sees it.
struct EngineView {
  int rank = 0;
  std::string role;  // empty before it is ready
  int pid = 0;
  std::string host;
  std::string state;  // "starting", "ready", "suspect", "draining", "gone"
  uint64_t epoch = 0;
  int num_in_flight = 0;             // of this event loop, exact
  int64_t num_tokens_in_flight = 0;  // prompt + generated so far of those, exact
  Load load;                         // of the whole engine, at most kLoadPeriod old
  uint64_t step = 0;                 // where it stands, as its last load report said
  int layer = -1;
  std::string stage;
  bool busy = false;
  std::shared_ptr<const ExpertReport> experts;  // null: none yet
  StepTimes step_times{};
  std::string kv_transfer;  // Welcome::kv_transfer
};

// The engines a front-end sends requests to: all of a deployment, or the slice of its own node.
struct RankRange {
  int first = 0;
  int count = std::numeric_limits<int>::max();
  bool contains(int rank) const { return rank >= first && rank - first < count; }
};

// Why a request was sent to another engine.
enum class ResubmitReason : uint8_t { kConnectionLost, kPutOut };  // put out: by the coordinator, past a deadline
inline constexpr size_t kNumResubmitReasons = 2;
const char* to_string(ResubmitReason reason);

struct ClientOptions {
  std::string coordinator;  // address: "unix:@name" or "tcp:host:port"
  std::string process;      // "api pid 4711 loop 2"
  std::string address;      // where this loop takes routers; empty: nowhere
  std::string host;         // name of this node, for messages
  RankRange ranks;
};

class EngineClient {
 public:
  using OnOutput = std::function<void(RequestOutput&&)>;

  EngineClient(boost::asio::io_context& io, ClientOptions options);
  ~EngineClient();  // aborts what is in flight; callbacks are not called any more
  EngineClient(const EngineClient&) = delete;
  EngineClient& operator=(const EngineClient&) = delete;

  // Starts to connect; keeps reconnecting until destroyed. on_change runs when an engine comes or goes.
  void start(std::function<void()> on_change);

  // Sends a request to the engine with the least load (or to data_parallel_rank, which counts from the first rank of
  // this front-end's range). `submit.id` is filled in. on_output runs on the loop's thread, never inside this call; the
  // call that carries a finish is the last. kUnavailable when no engine takes requests, kInvalidArgument when the range
  // has no such rank.
  Result<RequestId> submit(Submit submit, OnOutput on_output, std::optional<int> data_parallel_rank = {});

  // The caller wants nothing more: on_output is not called again. The engine frees the blocks within a step.
  void abort(RequestId id);

  // What engines said when they welcomed us; nullopt before the first is ready.
  std::optional<Welcome> model() const;
  bool ready() const;  // at least one engine takes requests
  std::vector<EngineView> engines() const;
  size_t num_in_flight() const;
  // The engine that works on the request; nullopt when it is over, or its engine died and it waits for another.
  std::optional<int> rank_of(RequestId id) const;
  // Told of each request that another engine takes over, with the rank that lost it.
  void on_resubmit(std::function<void(int lost_rank, ResubmitReason reason)> told);

 private:
  class Core;
  std::shared_ptr<Core> core_;
};

}  // namespace manta::engine
