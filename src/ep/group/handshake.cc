#include "ep/group/handshake.h"

#include <fmt/format.h>
#include <sys/random.h>
#include <sys/socket.h>

#include <cerrno>
#include <charconv>
#include <cstring>

namespace manta::ep {

Hello Hello::of(const EpTopology& topology, const GroupShape& s, const Key& key) {
  Hello h;
  h.rank = topology.rank;
  h.epoch = topology.epoch.value;
  h.key = key;
  h.size = s.size;
  h.layout = static_cast<int32_t>(s.layout);
  h.hidden_size = s.moe.hidden_size;
  h.top_k = s.moe.num_experts_per_tok;
  h.num_physical = s.moe.num_physical_experts;
  h.num_local = s.moe.num_local_experts;
  h.wire_dtype = static_cast<int32_t>(s.moe.wire_dtype);
  h.max_num_tokens = s.max_num_tokens;
  h.num_microbatches = s.num_microbatches;
  return h;
}

GroupShape Hello::shape() const {
  GroupShape s;
  s.moe = {hidden_size, top_k, num_physical, num_local, static_cast<DType>(wire_dtype)};
  s.layout = static_cast<ExpertLayout>(layout);
  s.size = size;
  s.max_num_tokens = max_num_tokens;
  s.num_microbatches = num_microbatches;
  return s;
}

Key random_key() {
  Key key{};
  // Cannot fail for this few bytes once the machine has booted; a short read would leave zeros, still a valid key.
  [[maybe_unused]] const ssize_t n = ::getrandom(key.data(), key.size(), 0);
  return key;
}

std::string ListenAddress::text() const {
  std::string out;
  if (!unix_name.empty()) out += fmt::format("unix=@{};", unix_name);
  if (!tcp_host.empty()) out += fmt::format("tcp={}:{};", tcp_host, tcp_port);
  return out + fmt::format("key={:02x}", fmt::join(key, ""));
}

std::optional<ListenAddress> ListenAddress::parse(const std::string& text) {
  ListenAddress out;
  bool has_key = false;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(';', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    begin = end + 1;
    if (part.rfind("unix=@", 0) == 0) {
      out.unix_name = part.substr(6);
    } else if (part.rfind("tcp=", 0) == 0) {
      const size_t colon = part.rfind(':');
      if (colon == std::string::npos || colon < 4) return std::nullopt;
      out.tcp_host = part.substr(4, colon - 4);
      const char* last = part.data() + part.size();
      const auto [at, ec] = std::from_chars(part.data() + colon + 1, last, out.tcp_port);
      if (ec != std::errc() || at != last) return std::nullopt;
    } else if (part.rfind("key=", 0) == 0 && part.size() == 4 + 2 * out.key.size()) {
      for (size_t i = 0; i < out.key.size(); ++i) {
        const char* digits = part.data() + 4 + 2 * i;
        const auto [at, ec] = std::from_chars(digits, digits + 2, out.key[i], 16);
        if (ec != std::errc() || at != digits + 2) return std::nullopt;
      }
      has_key = true;
    } else {
      return std::nullopt;
    }
  }
  if (!has_key || (out.unix_name.empty() && out.tcp_host.empty())) return std::nullopt;
  return out;
}

int send_record(int socket, const void* record, size_t num_bytes, int fd_to_pass) {
  iovec part = {const_cast<void*>(record), num_bytes};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (fd_to_pass >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd_to_pass, sizeof(int));
  }
  const ssize_t n = ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (n < 0) return errno;
  return static_cast<size_t>(n) == num_bytes ? 0 : EMSGSIZE;  // records are far smaller than any socket buffer
}

ssize_t receive_record(int socket, void* buffer, size_t num_bytes, Fd* passed) {
  iovec part = {buffer, num_bytes};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t n = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  for (cmsghdr* header = n >= 0 ? CMSG_FIRSTHDR(&message) : nullptr; header; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(header), sizeof(int));
    *passed = Fd(fd);
  }
  return n;
}

}  // namespace manta::ep
