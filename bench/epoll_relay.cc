// The baseline of router_bench.py: a bare relay. Takes TCP connections on a port, opens one to the server behind for
// each, and moves bytes both ways with one read and one write per event, on one thread. It knows nothing of HTTP.
//
//     manta_epoll_relay LISTEN_PORT SERVER_PORT
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <unordered_map>

namespace {

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "%s: %s\n", what, std::strerror(errno));
  std::exit(1);
}

int check(int result, const char* what) {
  if (result < 0) fail(what);
  return result;
}

sockaddr_in loopback(const char* port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(std::atoi(port)));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

void no_delay(int fd) {
  const int on = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

class Relay {
 public:
  Relay(const char* listen_port, const char* server_port)
      : server_(loopback(server_port)), epoll_(check(::epoll_create1(0), "epoll")) {
    listener_ = check(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
    const int on = 1;
    ::setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    const sockaddr_in address = loopback(listen_port);
    check(::bind(listener_, reinterpret_cast<const sockaddr*>(&address), sizeof address), "bind");
    check(::listen(listener_, 4096), "listen");
    watch(listener_);
  }

  void run() {
    epoll_event events[256];
    for (;;) {
      const int n = ::epoll_wait(epoll_, events, 256, -1);
      for (int i = 0; i < n; ++i) {
        const int fd = events[i].data.fd;
        if (fd == listener_) {
          accept_all();
        } else {
          move_bytes(fd);
        }
      }
    }
  }

 private:
  void watch(int fd) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    check(::epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
  }

  void accept_all() {
    for (;;) {
      const int client = ::accept4(listener_, nullptr, nullptr, 0);
      if (client < 0) return;
      const int server = check(::socket(AF_INET, SOCK_STREAM, 0), "socket");
      check(::connect(server, reinterpret_cast<const sockaddr*>(&server_), sizeof server_), "connect");
      no_delay(client);
      no_delay(server);
      peers_[client] = server;
      peers_[server] = client;
      watch(client);
      watch(server);
    }
  }

  void move_bytes(int fd) {
    const auto peer = peers_.find(fd);
    if (peer == peers_.end()) return;
    const ssize_t n = ::read(fd, buffer_, sizeof buffer_);
    if (n > 0 && ::send(peer->second, buffer_, static_cast<size_t>(n), MSG_NOSIGNAL) == n) return;
    const int other = peer->second;
    peers_.erase(fd);
    peers_.erase(other);
    ::close(fd);
    ::close(other);
  }

  const sockaddr_in server_;
  const int epoll_;
  int listener_ = -1;
  std::unordered_map<int, int> peers_;
  char buffer_[64 << 10];
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: manta_epoll_relay LISTEN_PORT SERVER_PORT\n");
    return 2;
  }
  static Relay relay(argv[1], argv[2]);
  relay.run();
}
