// One client request on its way: sent to a decode rank (and, with a connector, to a prefill rank at the same time), its
// answer's bytes passed on as they come. It keeps itself alive until the answer has ended or the client is gone.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "api/admission.h"
#include "api/http/message.h"
#include "api/openai/routed_prompt.h"
#include "router/kv_peers.h"
#include "router/pool.h"

namespace manta::router {

// Counted on the loop, read by /metrics on any.
struct RouterCounters {
  std::atomic<uint64_t> requests{0}, resubmissions{0}, prefill_fallbacks{0}, disconnects{0}, failures{0};
};

// What jobs need of their loop. Outlives them.
class JobHost {
 public:
  virtual ~JobHost() = default;
  virtual Pool& decode() = 0;
  virtual Pool* prefill() = 0;  // null: there are no prefill ranks
  virtual KvPeers& kv_peers() = 0;
  virtual RouterCounters& counters() = 0;
  virtual std::string draw_id() = 0;
  virtual uint64_t draw_seed() = 0;
  // retry runs at the next change of the pools, or with timed_out at the deadline.
  virtual void wait_for_rank(std::chrono::steady_clock::time_point deadline,
                             std::function<void(bool timed_out)> retry) = 0;
};

class RelayJob : public std::enable_shared_from_this<RelayJob> {
 public:
  static void start(JobHost& host, api::HttpRequest request, api::RoutedPrompt prompt, api::ResponseWriterPtr writer,
                    api::Admission::Ticket ticket);

  RelayJob(JobHost& host, api::HttpRequest request, api::RoutedPrompt prompt, api::ResponseWriterPtr writer,
           api::Admission::Ticket ticket);
  ~RelayJob();
  RelayJob(const RelayJob&) = delete;
  RelayJob& operator=(const RelayJob&) = delete;

 private:
  // One half of the job at one link.
  struct Leg : StreamSink {
    explicit Leg(RelayJob& j) : job(j) {}
    RelayJob& job;
    Seat seat;
    api::StreamId stream = 0;  // 0: not open
    void close();              // cancels what is open
  };
  struct DecodeLeg : Leg {
    using Leg::Leg;
    void on_piece(const api::Piece& piece) override { job.on_decode(piece); }
    void on_lost(const std::string& why) override { job.on_decode_lost(why); }
  };
  struct PrefillLeg : Leg {
    using Leg::Leg;
    void on_piece(const api::Piece& piece) override { job.on_prefill(piece); }
    void on_lost(const std::string& why) override { job.on_prefill_failed(why); }
  };

  void dispatch();
  bool choose_decode();
  bool choose_prefill();
  void send();
  const std::string& pull_params() const;  // of the two seats
  api::RelayRequest make_request() const;
  void open(Leg& leg, api::RelayRequest request);
  void wait();

  void on_decode(const api::Piece& piece);
  void begin(const api::Piece& piece);
  void take_tokens(const api::Piece& piece);
  bool refused();
  void on_decode_lost(const std::string& why);
  void on_prefill(const api::Piece& piece);
  void on_prefill_failed(const std::string& why);
  void on_gone();
  void finish();
  void fail(const std::string& why);
  void end();
  bool fresh() const;  // the client has nothing yet

  JobHost& host_;
  const api::HttpRequest request_;
  const api::RoutedPrompt prompt_;
  const api::ResponseWriterPtr writer_;
  api::Admission::Ticket ticket_;
  std::vector<uint64_t> prefix_;
  std::optional<int> rank_;
  const uint64_t seed_;
  const int64_t created_;
  int64_t num_prompt_tokens_ = 0, cost_ = 0;

  DecodeLeg decode_{*this};
  PrefillLeg prefill_{*this};
  std::string transfer_id_;  // of this attempt; empty: the decode rank computes the prompt
  int num_failed_prefills_ = 0;
  bool sent_ = false;   // to a decode rank, at least once
  int num_losses_ = 0;  // of the api process that had it
  std::vector<TargetPtr> refused_by_;
  std::optional<std::chrono::steady_clock::time_point> deadline_;  // set from a loss until a rank answers

  int status_ = 0;  // of the answer; 0: no head yet
  bool streaming_ = false;
  api::HttpResponse response_;  // gathered, when it is not a stream
  std::vector<api::Delivered> delivered_;
  size_t num_delivered_ = 0;
  bool ended_ = false;
  std::shared_ptr<RelayJob> self_;  // until end()
};

}  // namespace manta::router
