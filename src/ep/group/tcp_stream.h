// One rank's traffic over tcp. Messages are a header, then what it announces. Received straight into buffers that are
// sized for a round; sent from where the rows lie. The engine's thread sends what the socket takes at once and leaves
// the rest to the service thread, which also receives: a rank that is busy computing still drains its sockets.
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <vector>

#include "base/result.h"
#include "ep/group/group_shape.h"
#include "ep/group/segment.h"

namespace manta::ep {

enum class Half : uint16_t { kDispatch = 0, kCombine = 1 };

struct MessageHeader {
  uint32_t magic = kMagic;
  Half half = Half::kDispatch;
  uint16_t microbatch = 0;
  int32_t layer = -1;
  uint32_t num_rows = 0;  // dispatch: tokens with experts there, their ids [n, top_k] then rows; combine: rows
  uint32_t more = 0;
  static constexpr uint32_t kMagic = 0x4550'd474;
};

class TcpStream {
 public:
  // The socket is connected and does not block. on_unsent: asks the service thread to come back to wants_write().
  TcpStream(Fd socket, const GroupShape& shape, std::function<void()> on_unsent);
  Status allocate();

  int fd() const { return socket_.get(); }

  // ---- engine's thread ----
  // `parts` must stay until the peer has answered. Errors show up as a closed connection, on the service thread.
  void send(const MessageHeader& header, const std::vector<iovec>& parts);
  // The message that has arrived; take() makes room for the half's next.
  struct Received {
    MessageHeader header;
    const int32_t* topk_id = nullptr;  // dispatch
    const char* rows = nullptr;
  };
  Received received(Half half, int microbatch) const;
  bool has_received(Half half, int microbatch) const;
  void take(Half half, int microbatch);

  // ---- service thread ----
  bool wants_write() const;
  // Both: an error when the connection is over or the peer talks nonsense. arrived: once per complete message.
  Status on_writable();
  Status on_readable(const std::function<void(Half, int microbatch)>& arrived);
  void close();  // any thread: sends nothing more

 private:
  struct Inbox {  // of one half of one microbatch
    MessageHeader header;
    std::atomic<bool> full{false};
    Mapping bytes;
    size_t rows_at = 0;
  };
  struct Outgoing {
    MessageHeader header;
    std::vector<iovec> parts;  // the header first
    size_t next = 0;           // part
  };

  Inbox& inbox(Half half, int microbatch) { return inboxes_[microbatch * 2 + static_cast<int>(half)]; }
  const Inbox& inbox(Half half, int microbatch) const { return inboxes_[microbatch * 2 + static_cast<int>(half)]; }
  Status flush();  // mutex_ held
  Status begin_message();
  size_t ids_bytes(const MessageHeader& header) const;

  GroupShape shape_;
  Fd socket_;
  std::function<void()> on_unsent_;
  std::deque<Inbox> inboxes_;

  mutable std::mutex mutex_;
  std::deque<Outgoing> outgoing_;
  bool closed_ = false;

  // Of the message being received.
  MessageHeader header_;
  size_t header_bytes_ = 0;
  size_t body_bytes_ = 0, body_size_ = 0;
  std::vector<iovec> body_;  // what is left of it
};

}  // namespace manta::ep
