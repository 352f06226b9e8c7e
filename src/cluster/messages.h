// What members of a deployment and its coordinator say to each other.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace manta::cluster {

enum class Role : uint8_t { kEngine, kApi, kSupervisor, kRouter };
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
  bool waits = false;    // in a stage that waits for other ranks: the fault is then somebody else's
};

// A rank's place in an expert-parallel group. Ranks of other deployments never announce one.
struct GroupPlace {
  bool announced = false;    // weights are loaded and its expert transport listens at `address`
  std::string address;       // as ep::EpPeer
  std::string host_id;       // as ep::EpPeer
  uint64_t epoch = 0;        // of the group it is in; 0 = none
  uint64_t fault_epoch = 0;  // of the last group that failed for it without anybody having left
};

struct Member {
  Role role = Role::kEngine;
  int32_t rank = 0;  // DP rank of an engine; index of an api process on its node
  int32_t pid = 0;
  std::string host;
  std::string address;  // where it accepts frames, of the head's supervisor the coordinator's; else empty
  State state = State::kStarting;
  Where where;
  int32_t num_running = 0;
  int32_t num_waiting = 0;
  GroupPlace group;
};

// kJoin, member -> coordinator: the first frame.
struct Join {
  Member self;
  uint64_t last_epoch = 0;  // of the group it was in before; a new coordinator must go beyond it
  int32_t group_size = 0;   // of an engine that steps in lock-step with others; the same on all of them
  // Settings that must be equal in the whole deployment, key and value as text. Empty: not compared.
  std::vector<std::pair<std::string, std::string>> shared_config;
};

// kHeartbeat, member -> coordinator, every kHeartbeatPeriod from a thread of its own; answered by one without payload.
struct Heartbeat {
  State state = State::kStarting;
  Where where;
  int32_t num_running = 0;
  int32_t num_waiting = 0;
  GroupPlace group;
};

// kVote, engine -> coordinator: what a rank of a lock-step group brings to step `step` of the frame's epoch, said while
// the step before runs. A later vote for the same step replaces it, as long as the step is not decided.
struct Vote {
  uint64_t step = 0;             // counts the group's steps from 1, anew at each epoch
  bool has_work = false;         // false: it runs a dummy step if anybody has work
  bool all_decode = true;        // no prefill slice
  int32_t num_tokens = 0;        // rows at most
  int32_t num_microbatches = 1;  // 2: it asks for a split step
  bool leaving = false;          // it drains and has nothing left
};

// kDecision, coordinator -> engines, once every rank has voted and somebody has work. While nobody has, no decision
// comes and the group is paused; the first vote with work ends the pause.
struct Decision {
  uint64_t step = 0;
  bool counted = false;  // the receiver's work is part of it; else it runs a dummy step, even if it has work by now
  bool leave = false;    // every rank is leaving: nobody runs this step
  bool all_decode = true;
  int32_t max_num_tokens = 0;    // over the ranks: what all pad to, where steps are padded
  int32_t num_microbatches = 1;  // 2 only if every rank with work asked for it
};

// A member that left or was put out. Connections to it should be given up even where they still stand.
struct Departure {
  Role role = Role::kEngine;
  int32_t rank = 0;
  int32_t pid = 0;
  std::string host;
  std::string why;  // "engine rank 3 (host a, pid 4711): no heartbeat for 5.0 s; last seen at step 17, layer 2, …"
  bool put_out = false;  // past a deadline: its process may still run, stuck
};

// kMembership, coordinator -> all, whenever it changed. The frame's epoch is the group's.
struct Membership {
  std::vector<Member> members;        // by role, then rank
  std::vector<Departure> departures;  // since the last one
  std::vector<int32_t> group;         // ranks of the lock-step group at this epoch, ascending; empty: it waits for some
};

// kRefuse, coordinator -> member.
struct Refuse {
  std::string reason;
};

std::string encode(const Join&);
std::string encode(const Heartbeat&);
std::string encode(const Vote&);
std::string encode(const Decision&);
std::string encode(const Membership&);
std::string encode(const Refuse&);
Result<Join> decode_join(std::string_view payload);
Result<Heartbeat> decode_heartbeat(std::string_view payload);
Result<Vote> decode_vote(std::string_view payload);
Result<Decision> decode_decision(std::string_view payload);
Result<Membership> decode_membership(std::string_view payload);
Result<Refuse> decode_refuse(std::string_view payload);

}  // namespace manta::cluster
