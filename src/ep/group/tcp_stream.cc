#include "ep/group/tcp_stream.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <utility>

namespace manta::ep {

namespace {

Error closed_by_peer(int code) {
  // A process that dies with rows unread resets the connection rather than closing it.
  if (code == 0 || code == ECONNRESET || code == EPIPE) return error(ErrorCode::kUnavailable, "closed its connection");
  return error(ErrorCode::kUnavailable, fmt::format("its connection: {}", std::strerror(code)));
}

// Drops num_bytes from the front of parts[next ...].
void advance(std::vector<iovec>& parts, size_t& next, size_t num_bytes) {
  while (num_bytes > 0) {
    iovec& part = parts[next];
    const size_t taken = std::min(num_bytes, part.iov_len);
    part.iov_base = static_cast<char*>(part.iov_base) + taken;
    part.iov_len -= taken;
    num_bytes -= taken;
    if (part.iov_len == 0) ++next;
  }
}

}  // namespace

TcpStream::TcpStream(Fd socket, const GroupShape& shape, std::function<void()> on_unsent)
    : shape_(shape),
      socket_(std::move(socket)),
      on_unsent_(std::move(on_unsent)),
      inboxes_(static_cast<size_t>(shape.num_microbatches) * 2) {}

size_t TcpStream::ids_bytes(const MessageHeader& header) const {
  return header.half == Half::kDispatch ? header.num_rows * shape_.moe.num_experts_per_tok * sizeof(int32_t) : 0;
}

Status TcpStream::allocate() {
  for (int i = 0; i < shape_.num_microbatches; ++i) {
    Inbox& in = inbox(Half::kDispatch, i);
    in.rows_at = shape_.pairs() * sizeof(int32_t);
    MANTA_ASSIGN(in.bytes, Mapping::make(in.rows_at + shape_.max_num_tokens * shape_.row_bytes(), -1));
    MANTA_ASSIGN(inbox(Half::kCombine, i).bytes, Mapping::make(shape_.pairs() * shape_.row_bytes(), -1));
  }
  return {};
}

void TcpStream::send(const MessageHeader& header, const std::vector<iovec>& parts) {
  bool left = false;
  {
    const std::lock_guard lock(mutex_);
    if (closed_) return;
    Outgoing& out = outgoing_.emplace_back();
    out.header = header;
    out.parts.reserve(parts.size() + 1);
    out.parts.push_back({&out.header, sizeof(out.header)});
    for (const iovec& part : parts) {
      if (part.iov_len > 0) out.parts.push_back(part);
    }
    if (outgoing_.size() == 1 && !flush().ok()) return;  // the service thread will see it too
    left = !outgoing_.empty();
  }
  if (left) on_unsent_();
}

Status TcpStream::flush() {
  while (!outgoing_.empty()) {
    Outgoing& out = outgoing_.front();
    msghdr message = {};
    message.msg_iov = out.parts.data() + out.next;
    message.msg_iovlen = std::min<size_t>(out.parts.size() - out.next, IOV_MAX);
    const ssize_t n = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return {};
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return closed_by_peer(errno);
    advance(out.parts, out.next, static_cast<size_t>(n));
    if (out.next == out.parts.size()) outgoing_.pop_front();
  }
  return {};
}

bool TcpStream::wants_write() const {
  const std::lock_guard lock(mutex_);
  return !outgoing_.empty();
}

Status TcpStream::on_writable() {
  const std::lock_guard lock(mutex_);
  return flush();
}

void TcpStream::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  outgoing_.clear();
  ::shutdown(socket_.get(), SHUT_RDWR);
}

// The header is complete: where its body goes.
Status TcpStream::begin_message() {
  const MessageHeader& h = header_;
  const bool known = h.half == Half::kDispatch || h.half == Half::kCombine;
  const size_t most = h.half == Half::kDispatch ? shape_.max_num_tokens : shape_.pairs();
  if (h.magic != MessageHeader::kMagic || !known || h.microbatch >= shape_.num_microbatches || h.num_rows > most) {
    return error(ErrorCode::kDataLoss,
                 fmt::format("sent a malformed message (half {}, microbatch {}, {} rows of at most {})",
                             static_cast<int>(h.half), h.microbatch, h.num_rows, most));
  }
  Inbox& in = inbox(h.half, h.microbatch);
  if (in.full.load(std::memory_order_acquire)) {
    return error(ErrorCode::kDataLoss,
                 fmt::format("is a round ahead (layer {}, microbatch {})", h.layer, h.microbatch));
  }
  in.header = h;
  body_ = {{in.bytes.data(), ids_bytes(h)}, {in.bytes.data() + in.rows_at, h.num_rows * shape_.row_bytes()}};
  body_size_ = body_[0].iov_len + body_[1].iov_len;
  body_bytes_ = 0;
  return {};
}

Status TcpStream::on_readable(const std::function<void(Half, int)>& arrived) {
  while (true) {
    ssize_t n = 0;
    if (header_bytes_ < sizeof(header_)) {
      n = ::recv(socket_.get(), reinterpret_cast<char*>(&header_) + header_bytes_, sizeof(header_) - header_bytes_,
                 MSG_DONTWAIT);
    } else {
      msghdr message = {};
      message.msg_iov = body_.data();
      message.msg_iovlen = body_.size();
      n = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT);
    }
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return {};
    if (n <= 0) return closed_by_peer(n < 0 ? errno : 0);
    if (header_bytes_ < sizeof(header_)) {
      header_bytes_ += static_cast<size_t>(n);
      if (header_bytes_ < sizeof(header_)) continue;
      MANTA_TRY(begin_message());
    } else {
      body_bytes_ += static_cast<size_t>(n);
      size_t next = 0;
      advance(body_, next, static_cast<size_t>(n));
      body_.erase(body_.begin(), body_.begin() + static_cast<ptrdiff_t>(next));
    }
    if (body_bytes_ < body_size_) continue;
    header_bytes_ = 0;
    inbox(header_.half, header_.microbatch).full.store(true, std::memory_order_release);
    arrived(header_.half, header_.microbatch);
  }
}

TcpStream::Received TcpStream::received(Half half, int microbatch) const {
  const Inbox& in = inbox(half, microbatch);
  const auto* ids = half == Half::kDispatch ? reinterpret_cast<const int32_t*>(in.bytes.data()) : nullptr;
  return {in.header, ids, in.bytes.data() + in.rows_at};
}

bool TcpStream::has_received(Half half, int microbatch) const {
  return inbox(half, microbatch).full.load(std::memory_order_acquire);
}

void TcpStream::take(Half half, int microbatch) {
  inbox(half, microbatch).full.store(false, std::memory_order_release);
}

}  // namespace manta::ep
