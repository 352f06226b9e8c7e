#include "cluster/messages.h"

#include "base/pack.h"

namespace manta::cluster {

static constexpr Role last_value(Role) {
  return Role::kRouter;
}
static constexpr State last_value(State) {
  return State::kGone;
}
static auto fields(Where& m) {
  return std::tie(m.step, m.layer, m.stage, m.counter, m.busy, m.waits);
}
static auto fields(GroupPlace& m) {
  return std::tie(m.announced, m.address, m.host_id, m.epoch, m.fault_epoch);
}
static auto fields(Member& m) {
  return std::tie(m.role, m.rank, m.pid, m.host, m.address, m.state, m.where, m.num_running, m.num_waiting, m.group);
}
static auto fields(Join& m) {
  return std::tie(m.self, m.last_epoch, m.group_size, m.shared_config);
}
static auto fields(Heartbeat& m) {
  return std::tie(m.state, m.where, m.num_running, m.num_waiting, m.group);
}
static auto fields(Vote& m) {
  return std::tie(m.step, m.has_work, m.all_decode, m.num_tokens, m.num_microbatches, m.leaving);
}
static auto fields(Decision& m) {
  return std::tie(m.step, m.counted, m.leave, m.all_decode, m.max_num_tokens, m.num_microbatches);
}
static auto fields(Departure& m) {
  return std::tie(m.role, m.rank, m.pid, m.host, m.why, m.put_out);
}
static auto fields(Membership& m) {
  return std::tie(m.members, m.departures, m.group);
}
static auto fields(Refuse& m) {
  return std::tie(m.reason);
}

const char* to_string(Role role) {
  switch (role) {
    case Role::kEngine: return "engine";
    case Role::kApi: return "api";
    case Role::kSupervisor: return "supervisor";
    case Role::kRouter: return "router";
  }
  return "unknown";
}

const char* to_string(State state) {
  switch (state) {
    case State::kStarting: return "starting";
    case State::kReady: return "ready";
    case State::kSuspect: return "suspect";
    case State::kDraining: return "draining";
    case State::kGone: return "gone";
  }
  return "unknown";
}

std::string encode(const Join& m) {
  return pack_message(m);
}
std::string encode(const Heartbeat& m) {
  return pack_message(m);
}
std::string encode(const Vote& m) {
  return pack_message(m);
}
std::string encode(const Decision& m) {
  return pack_message(m);
}
std::string encode(const Membership& m) {
  return pack_message(m);
}
std::string encode(const Refuse& m) {
  return pack_message(m);
}
Result<Join> decode_join(std::string_view p) {
  return unpack_message<Join>(p, "join");
}
Result<Heartbeat> decode_heartbeat(std::string_view p) {
  return unpack_message<Heartbeat>(p, "heartbeat");
}
Result<Vote> decode_vote(std::string_view p) {
  return unpack_message<Vote>(p, "vote");
}
Result<Decision> decode_decision(std::string_view p) {
  return unpack_message<Decision>(p, "decision");
}
Result<Membership> decode_membership(std::string_view p) {
  return unpack_message<Membership>(p, "membership");
}
Result<Refuse> decode_refuse(std::string_view p) {
  return unpack_message<Refuse>(p, "refuse");
}

}  // namespace manta::cluster
