// What members of a deployment and its coordinator say to each other.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace manta::cluster {

enum class Role : uint8_t { kEngine, kApi, kSupervisor };
const char* to_string(Role role);

// starting: joined, loading weights. ready: takes requests. suspect: no heartbeat for a second, gets nothing new.
// draining: finishes what it has. gone: connection closed or past its deadline; named once, then forgotten.
enum class State : uint8_t { kStarting, kReady, kSuspect, kDraining, kGone };
const char* to_string(State state);

// Where a member's execution stands; carried by heartbeats so that a stuck rank can be named.
struct Where {
  uint64_t step = 0;
  int32_t layer = -1;
  std::string stage = "idle";
  uint64_t counter = 0;  // grows at every stage
  bool busy = false;     // has work in flight: a counter that stands still is then a fault
};

struct Member {
  Role role = Role::kEngine;
  int32_t rank = 0;  // DP rank of an engine; index of an api process on its node
  int32_t pid = 0;
  std::string host;
  std::string address;  // where it accepts frames; empty for those who only connect
  State state = State::kStarting;
  Where where;
  int32_t num_running = 0;
  int32_t num_waiting = 0;
};

// kJoin, member -> coordinator: the first frame.
struct Join {
  Member self;
  uint64_t last_epoch = 0;  // of the group it was in before; a new coordinator must go beyond it
  // Settings that must be equal on all engines of the deployment, key and value as text.
  std::vector<std::pair<std::string, std::string>> shared_config;
};

// kHeartbeat, member -> coordinator, every kHeartbeatPeriod from a thread of its own.
struct Heartbeat {
  State state = State::kStarting;
  Where where;
  int32_t num_running = 0;
  int32_t num_waiting = 0;
};

// A member that left or was put out. Connections to it should be given up even where they still stand.
struct Departure {
  Role role = Role::kEngine;
  int32_t rank = 0;
  int32_t pid = 0;
  std::string host;
  std::string why;  // "engine rank 3 (host a, pid 4711): no heartbeat for 5.0 s; last seen at step 17, layer 2, …"
};

// kMembership, coordinator -> all, whenever it changed. The frame's epoch is the group's.
struct Membership {
  std::vector<Member> members;        // by role, then rank
  std::vector<Departure> departures;  // since the last one
};

// kRefuse, coordinator -> member.
struct Refuse {
  std::string reason;
};

std::string encode(const Join&);
std::string encode(const Heartbeat&);
std::string encode(const Membership&);
std::string encode(const Refuse&);
Result<Join> decode_join(std::string_view payload);
Result<Heartbeat> decode_heartbeat(std::string_view payload);
Result<Membership> decode_membership(std::string_view payload);
Result<Refuse> decode_refuse(std::string_view payload);

}  // namespace manta::cluster
