#include "cluster/node_plan.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <functional>
#include <memory>

namespace manta::cluster {
namespace {

constexpr const char* kDefaultHead = "127.0.0.1";

int as_int(int64_t n) {
  return static_cast<int>(n);
}

Result<std::string> numeric(const sockaddr* address, socklen_t size) {
  std::array<char, NI_MAXHOST> text{};
  if (const int rc = ::getnameinfo(address, size, text.data(), text.size(), nullptr, 0, NI_NUMERICHOST); rc != 0) {
    return error(ErrorCode::kUnavailable, fmt::format("getnameinfo: {}", ::gai_strerror(rc)));
  }
  return std::string(text.data());
}

// Calls visit(name, numeric address) for every address of every interface, IPv4 first, until it returns true.
bool visit_interfaces(const std::function<bool(const std::string&, const std::string&)>& visit) {
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return false;
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(list, ::freeifaddrs);
  for (const int family : {AF_INET, AF_INET6}) {
    const auto size = static_cast<socklen_t>(family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
    for (const ifaddrs* i = list; i != nullptr; i = i->ifa_next) {
      if (i->ifa_addr == nullptr || i->ifa_addr->sa_family != family) continue;
      const auto address = numeric(i->ifa_addr, size);
      if (address.ok() && visit(i->ifa_name, *address)) return true;
    }
  }
  return false;
}

Balancing balancing_of(const Settings& s) {
  if (s.data_parallel_rank || s.data_parallel_external_lb) return Balancing::kExternal;
  const bool hybrid = s.data_parallel_hybrid_lb || (s.data_parallel_start_rank && !s.headless);
  const int64_t local = s.data_parallel_size_local.value_or(s.data_parallel_size);
  if (!hybrid || local == s.data_parallel_size) return Balancing::kInternal;
  return local == 1 ? Balancing::kExternal : Balancing::kHybrid;
}

}  // namespace

std::string bracketed(const std::string& host) {
  return host.find(':') == std::string::npos ? host : "[" + host + "]";
}

const char* to_string(Balancing balancing) {
  switch (balancing) {
    case Balancing::kInternal: return "internal";
    case Balancing::kHybrid: return "hybrid";
    case Balancing::kExternal: return "external";
  }
  return "unknown";
}

NodePlan plan_node(const Settings& s) {
  NodePlan plan;
  plan.balancing = balancing_of(s);
  const bool external = plan.balancing == Balancing::kExternal;
  plan.first_rank = as_int(s.data_parallel_rank.value_or(s.data_parallel_start_rank.value_or(0)));
  plan.num_ranks = external ? 1 : as_int(s.data_parallel_size_local.value_or(s.data_parallel_size));
  plan.has_api = !s.headless;
  plan.several_nodes = plan.num_ranks < s.data_parallel_size || s.headless;
  const bool serves_all = plan.balancing == Balancing::kInternal;
  plan.first_served = serves_all ? 0 : plan.first_rank;
  plan.num_served = serves_all ? as_int(s.data_parallel_size) : plan.num_ranks;
  plan.starts_coordinator = !s.coordinator && !s.headless && plan.first_rank == 0;
  if (s.coordinator) {
    plan.coordinator = *s.coordinator;
  } else if (plan.several_nodes) {
    plan.coordinator =
        fmt::format("tcp:{}:{}", bracketed(s.data_parallel_address.value_or(kDefaultHead)), s.data_parallel_rpc_port);
  }
  plan.engines_on_tcp = s.headless;
  return plan;
}

Result<std::string> local_address_towards(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (const int rc = ::getaddrinfo(host.c_str(), "9", &hints, &found); rc != 0) {
    return error(ErrorCode::kUnavailable, fmt::format("host \"{}\": {}", host, ::gai_strerror(rc)));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, ::freeaddrinfo);
  // Connecting a datagram socket sends nothing: it only asks the routing table.
  const int fd = ::socket(found->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  sockaddr_storage local{};
  socklen_t size = sizeof local;
  const bool routed = fd >= 0 && ::connect(fd, found->ai_addr, found->ai_addrlen) == 0 &&
                      ::getsockname(fd, reinterpret_cast<sockaddr*>(&local), &size) == 0;
  const int why = errno;
  if (fd >= 0) ::close(fd);
  if (!routed) {
    return error(ErrorCode::kUnavailable,
                 fmt::format("no route to {}: {}; give this node's address (VLLM_HOST_IP)", host, std::strerror(why)));
  }
  return numeric(reinterpret_cast<const sockaddr*>(&local), size);
}

Result<std::string> address_of_interface(const std::string& name) {
  std::string found;
  visit_interfaces([&](const std::string& n, const std::string& address) {
    if (n == name) found = address;
    return n == name;
  });
  if (!found.empty()) return found;
  return error(ErrorCode::kInvalidArgument,
               fmt::format("network interface \"{}\" is not there or has no address", name));
}

Result<std::string> interface_of_address(const std::string& address) {
  std::string found;
  visit_interfaces([&](const std::string& name, const std::string& a) {
    if (a == address) found = name;
    return a == address;
  });
  if (!found.empty()) return found;
  return error(ErrorCode::kInvalidArgument, fmt::format("no network interface has the address {}", address));
}

}  // namespace manta::cluster
