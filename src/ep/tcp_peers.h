// The ranks of other hosts: one connection each way, a thread that reads them all, and what has arrived. Frames carry
// the routing of a rank's tokens and, once per token and rank, the rows; back come the experts' outputs in the order in
// which they were asked for.
#pragma once

#include <condition_variable>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "ep/meeting.h"

namespace manta::ep {

struct TcpShape {
  int my_rank = 0;
  int num_microbatches = 1;
  int max_tokens = 0;
  int top_k = 0;
  int num_local_experts = 0;
  size_t row_bytes = 0;
};

class TcpPeers {
 public:
  using Clock = std::chrono::steady_clock;

  // What one rank sent in one dispatch.
  struct Rows {
    int num_tokens = 0;
    bool more = false;                  // another round follows
    std::vector<int32_t> ids;           // [num_tokens, top_k] physical
    std::vector<int32_t> row_of_token;  // [num_tokens], -1: none of its experts is here
    std::vector<std::byte> rows;
  };

  // Takes the connections out of `met`.
  TcpPeers(const TcpShape& shape, std::vector<MetPeer>& met);
  ~TcpPeers();
  TcpPeers(const TcpPeers&) = delete;

  const std::vector<int>& ranks() const { return ranks_; }

  // ---- the thread that runs steps ----
  // ids: [num_tokens, top_k]; rows: [num_tokens] of row_bytes. Rows go out for tokens with an expert on that rank.
  // Returns the number of rows sent. Once per dispatch and microbatch.
  Result<int> send_rows(int rank, int microbatch, int num_tokens, bool more, const int32_t* ids, const std::byte* rows);
  Status send_outputs(int rank, int microbatch, std::span<const std::byte* const> rows);
  // The next dispatch of that rank; valid until the next but one call for the same rank and microbatch.
  Result<const Rows*> wait_rows(int rank, int microbatch, Clock::time_point deadline);
  // Its experts' outputs for what was sent, in the order (token, k); num_rows of them are expected.
  Result<const std::byte*> wait_outputs(int rank, int microbatch, int num_rows, Clock::time_point deadline);

  // Ends every wait and every send, for good. Any thread.
  void close();

 private:
  enum class Kind : uint32_t { kRows = 1, kOutputs = 2 };
  struct Head {
    uint32_t magic;
    Kind kind;
    uint32_t microbatch;
    uint32_t num_tokens;  // rows: whose routing follows
    uint32_t num_rows;    // that follow
    uint32_t more;        // rows: another round follows
  };
  // One direction of traffic of one microbatch: filled by the reader, handed over whole.
  struct Inbox {
    Rows rows, taken_rows;
    std::vector<std::byte> outputs, taken_outputs;
    bool rows_ready = false, outputs_ready = false;
  };
  struct Peer {
    int rank = -1;
    OwnedFd out, in;
    std::vector<Inbox> inboxes;  // by microbatch
    std::string gone;            // why nothing more comes
    // The frame being read.
    Head head{};
    size_t num_read = 0;  // of the head, then of the payload
    bool in_payload = false;
    std::vector<std::byte> payload;
  };

  Peer& peer(int rank);
  Status send(Peer& p, std::span<const std::byte> bytes);
  Status wait(Peer& p, const bool& ready, Clock::time_point deadline, const char* what);
  void read_forever();
  bool read_some(Peer& p);
  size_t payload_bytes(const Head& head) const;
  bool is_sane(const Head& head) const;
  bool deliver(Peer& p);
  bool deliver_rows(Peer& p, Inbox& inbox);

  const TcpShape shape_;
  std::vector<int> ranks_;
  std::vector<std::unique_ptr<Peer>> peers_;
  std::vector<std::byte> frame_;  // being sent
  OwnedFd bell_;
  std::mutex mutex_;
  std::condition_variable arrived_;
  bool closed_ = false;  // under mutex_
  std::thread reader_;
};

}  // namespace manta::ep
