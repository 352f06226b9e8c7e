// Who is in the group, in which state, at which epoch: the coordinator's whole decision, without sockets or clocks.
// The epoch grows whenever the set of engines changes; api processes and supervisors come and go without it.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "cluster/messages.h"

namespace manta::cluster {

using MemberId = uint64_t;  // the coordinator's number for a connection
using Time = std::chrono::steady_clock::time_point;

struct Deadlines {
  std::chrono::milliseconds suspect{1000};  // without heartbeat: nothing new
  std::chrono::milliseconds rank{5000};     // without heartbeat: gone
  std::chrono::milliseconds step{60000};    // busy, heartbeat, but the stage counter stands still: gone
  std::chrono::milliseconds shrink{1000};   // a lock-step group lacks a rank: the others go on; 0: they wait for it
};

class Roster {
 public:
  using Config = std::vector<std::pair<std::string, std::string>>;

  // config: what every member's shared settings must be; empty: what the first one brings.
  explicit Roster(Deadlines deadlines, Config config = {})
      : deadlines_(deadlines), fixed_config_(!config.empty()), shared_config_(std::move(config)) {}

  // Refuses a member whose shared settings differ (naming the first), and an engine whose rank a living one has.
  Status join(MemberId id, const Join& join, Time now);
  void heartbeat(MemberId id, const Heartbeat& beat, Time now);
  // The connection is gone.
  void leave(MemberId id, const std::string& why);
  // Applies the deadlines. Returns the ids that are out now; their connections should be closed. `owing`: the ranks of
  // a lock-step group whose votes the others wait for. Of ranks that stand still, those that wait for others are spared
  // while one of the others can be blamed; when all of them wait for each other, the group is put together anew.
  std::vector<MemberId> tick(Time now, const std::vector<int>& owing = {});

  Epoch epoch() const { return epoch_; }
  // Decides who is in the lock-step group at this epoch: all `size` ranks, once each has announced its place; of a
  // group that was whole before, those that are there, when the others have been missing for Deadlines::shrink. Nobody
  // in between. An epoch has one group: another one begins another epoch.
  void settle_group(int size, Time now);
  const std::vector<int32_t>& group() const { return group_; }  // ranks, ascending; empty: it cannot form
  // The engine behind a connection; -1: not an engine of the group.
  int rank_of(MemberId id) const;
  // True once after anything members must hear of. Load figures alone do not count.
  bool take_changed();
  Membership membership();  // hands out the departures once

 private:
  struct Entry {
    Member member;
    Time last_heartbeat;
    Time last_progress;
    State reported = State::kStarting;  // what it said itself, restored when a suspect is heard again
    Time owes_since = Time::max();      // its vote
    bool brought_config = false;        // that others are compared with
  };
  void remove(std::map<MemberId, Entry>::iterator entry, const std::string& why, bool put_out);
  std::string fault_of(const Entry& entry, Time now) const;
  void start_over(Time now, const std::string& why);
  void forgive(Time now);
  Status check_config(const Join& join);

  Deadlines deadlines_;
  Epoch epoch_{1};
  bool changed_ = false;
  std::map<MemberId, Entry> entries_;
  bool fixed_config_;
  Config shared_config_;
  std::vector<Departure> departures_;
  std::vector<int32_t> group_;
  bool was_whole_ = false;            // all ranks of the group were there
  Time missing_since_ = Time::max();  // one of them is not
};

}  // namespace manta::cluster
