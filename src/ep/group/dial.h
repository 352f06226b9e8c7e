// Reaching a peer: addresses, the connector's half of the handshake, and what a connected peer consists of.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <chrono>
#include <functional>
#include <string>

#include "base/result.h"
#include "ep/group/group.h"

namespace manta::ep {

class UnixAddress {  // abstract
 public:
  explicit UnixAddress(const std::string& name);
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address_); }
  socklen_t size() const { return size_; }

 private:
  sockaddr_un address_ = {};
  socklen_t size_ = 0;
};

class TcpAddress {  // numeric
 public:
  static Result<TcpAddress> make(const std::string& host, uint16_t port);
  int family() const { return address_.ss_family; }
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address_); }
  socklen_t size() const { return size_; }

 private:
  sockaddr_storage address_ = {};
  socklen_t size_ = 0;
};

// Connects to a rank of the group and shakes hands. on_unsent: as TcpStream's. kAborted: it is at another epoch, or
// the group failed meanwhile.
Status dial(Group& group, int rank, std::function<void()> on_unsent, std::chrono::steady_clock::time_point deadline);

// Makes a connected socket a peer of the group. greet: sends what the other side still waits for, 0 or errno; the peer
// counts as connected only after that.
Status attach(Group& group, int rank, Fd socket, Fd segment, std::function<void()> on_unsent,
              const std::function<int(int socket)>& greet);

}  // namespace manta::ep
