// Frames over a stream socket, unix on a node and tcp across. Everything here runs on one io_context's thread, except
// where said. Addresses are text: "unix:@name" (abstract: leaves no file behind), "unix:/path", "tcp:host:port".
//
// A unix listener takes connections of its own user (and root) only. A peer that dies is seen at once, as a close; a
// peer that does not read is cut off when kMaxQueuedBytes wait for it; one that the network lost, after kTcpSilence.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>

#include "base/frame.h"
#include "base/result.h"

namespace boost::asio {
class io_context;
}

namespace manta {

class FrameConnection {
 public:
  using OnFrame = std::function<void(Frame&&)>;
  using OnClose = std::function<void(const Error&)>;  // once; nothing is called after it

  virtual ~FrameConnection() = default;
  // Begins to read. on_close also runs after close() of ours, but never inside a call of ours.
  virtual void start(OnFrame on_frame, OnClose on_close) = 0;
  // Queues a frame; frames queued in one turn of the loop leave in one write. Ignored once closed.
  virtual void send(FrameKind kind, Epoch epoch, std::string_view payload) = 0;
  // As send(), but leaves at once when nothing is queued: for the small frames that somebody waits for.
  virtual void send_now(FrameKind kind, Epoch epoch, std::string_view payload) = 0;
  // Sends what is queued, then closes. Reads nothing more.
  virtual void finish(const std::string& why) = 0;
  virtual void close(const std::string& why) = 0;
  virtual size_t queued_bytes() const = 0;
};
using FrameConnectionPtr = std::shared_ptr<FrameConnection>;

inline constexpr size_t kMaxQueuedBytes = 64u << 20;
inline constexpr std::chrono::milliseconds kTcpSilence{5000};  // as rank_deadline_s by default

// Calls back with a connection or with why not, and waits for no name server. Destroying the io_context drops it.
void connect_frames(boost::asio::io_context& io, const std::string& address,
                    std::function<void(Result<FrameConnectionPtr>)> done);

class FrameListener {
 public:
  virtual ~FrameListener() = default;
  virtual const std::string& address() const = 0;  // with the port that was bound, where 0 was asked for
  virtual void close() = 0;
};

// Fails when the address is malformed, taken or unknown on this host. Waits for the name server if it has a name.
Result<std::unique_ptr<FrameListener>> listen_frames(boost::asio::io_context& io, const std::string& address,
                                                     std::function<void(FrameConnectionPtr)> on_accept);

}  // namespace manta
