// Where this process is, as other ranks see it.
#pragma once

#include <string>

#include "base/result.h"

namespace manta::ep {

// Boot id, network namespace and /dev/shm of this process: two ranks with equal ids can pass each other memory.
std::string host_id();

// The IPv4 address of a network interface, or of the first one of a comma-separated list that exists (as
// GLOO_SOCKET_IFNAME is written). Empty name: the loopback interface. An unknown one is an error that names those there
// are.
Result<std::string> interface_address(const std::string& names);

}  // namespace manta::ep
