// What this node contributes to a deployment, read off its settings as vLLM means them:
//
//   internal load balancing   the head's API serves all ranks; other nodes are --headless engines
//   hybrid                    every node's API serves its own ranks, something outside balances over nodes
//   external                  every rank has an API of its own, something outside balances over ranks
//
// The node of rank 0 is the head: it runs the coordinator, which the others join, unless --coordinator names one.
#pragma once

#include <string>

#include "base/result.h"
#include "base/settings.h"

namespace manta::cluster {

enum class Balancing : uint8_t { kInternal, kHybrid, kExternal };
const char* to_string(Balancing balancing);

struct NodePlan {
  Balancing balancing = Balancing::kInternal;
  bool several_nodes = false;
  bool starts_coordinator = true;
  bool has_api = true;
  int first_rank = 0;  // of the engines that run here
  int num_ranks = 1;
  int first_served = 0;  // of the engines that the API here sends requests to
  int num_served = 1;
  std::string coordinator;      // address; empty: a unix socket of this machine
  bool engines_on_tcp = false;  // the API is on another node
};

// `settings` have passed validate().
NodePlan plan_node(const Settings& settings);

// As it stands before a port: IPv6 addresses in brackets.
std::string bracketed(const std::string& host);
// The address of this host from which `host` is reached, as text.
Result<std::string> local_address_towards(const std::string& host);
// The address of an interface; the interface that has an address.
Result<std::string> address_of_interface(const std::string& name);
Result<std::string> interface_of_address(const std::string& address);

}  // namespace manta::cluster
