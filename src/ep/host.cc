#include "ep/host.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <ifaddrs.h>
#include <sys/stat.h>

#include <fstream>
#include <map>
#include <sstream>
#include <vector>

namespace manta::ep {
namespace {

std::string identity_of(const char* path) {
  struct stat s {};
  return ::stat(path, &s) == 0 ? fmt::format("{:x}.{:x}", s.st_dev, s.st_ino) : "none";
}

std::map<std::string, std::string> interfaces() {
  std::map<std::string, std::string> out;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return out;
  for (const ifaddrs* i = list; i; i = i->ifa_next) {
    if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET) continue;
    char text[INET_ADDRSTRLEN] = {};
    ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(i->ifa_addr)->sin_addr, text, sizeof(text));
    out.emplace(i->ifa_name, text);  // the first address of an interface
  }
  ::freeifaddrs(list);
  return out;
}

}  // namespace

std::string host_id() {
  std::string boot;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), boot);
  return fmt::format("{}/{}/{}", boot, identity_of("/proc/self/ns/net"), identity_of("/dev/shm"));
}

Result<std::string> interface_address(const std::string& names) {
  const auto known = interfaces();
  std::stringstream wanted(names.empty() ? "lo" : names);
  for (std::string name; std::getline(wanted, name, ',');) {
    if (const auto found = known.find(name); found != known.end()) return found->second;
  }
  std::vector<std::string> list;
  for (const auto& [name, address] : known) list.push_back(fmt::format("{} ({})", name, address));
  return error(ErrorCode::kNotFound, fmt::format("GLOO_SOCKET_IFNAME {}: no such network interface here; there are {}",
                                                 names, fmt::join(list, ", ")));
}

}  // namespace manta::ep
