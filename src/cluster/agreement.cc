#include "cluster/agreement.h"

#include <fmt/format.h>

#include <algorithm>

namespace manta::cluster {

void Agreement::reset(Epoch epoch, int num_ranks) {
  epoch_ = epoch;
  ballots_.assign(num_ranks, {});
  step_ = 1;
  num_voted_ = num_working_ = num_leaving_ = 0;
  decision_ = {};
}

Result<Agreement::Outcome> Agreement::vote(int rank, Epoch epoch, const Vote& vote) {
  if (epoch != epoch_ || !formed()) return Outcome::kStale;
  if (rank < 0 || rank >= static_cast<int>(ballots_.size())) {
    return error(ErrorCode::kInvalidArgument, fmt::format("vote of rank {}: the group has {}", rank, ballots_.size()));
  }
  if (vote.step > step_ || vote.num_tokens < 0 || vote.num_microbatches < 1) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("rank {} votes for step {} with {} tokens in {} microbatches; the group is at step {}",
                             rank, vote.step, vote.num_tokens, vote.num_microbatches, step_));
  }
  if (vote.step < step_) return Outcome::kLate;
  Ballot& ballot = ballots_[rank];
  if (ballot.step == step_) {
    num_working_ -= ballot.vote.has_work;
    num_leaving_ -= ballot.vote.leaving;
  } else {
    ++num_voted_;
  }
  ballot.step = step_;
  ballot.vote = vote;
  num_working_ += vote.has_work;
  num_leaving_ += vote.leaving;
  return decide() ? Outcome::kDecided : Outcome::kPending;
}

bool Agreement::decide() {
  const int num_ranks = static_cast<int>(ballots_.size());
  if (num_voted_ < num_ranks) return false;
  if (num_working_ == 0 && num_leaving_ < num_ranks) return false;
  Decision d;
  d.step = step_;
  d.leave = num_working_ == 0;
  d.num_microbatches = d.leave ? 1 : INT32_MAX;
  for (Ballot& ballot : ballots_) {
    const Vote& v = ballot.vote;
    ballot.counted = v.has_work;
    if (!v.has_work) continue;
    d.all_decode &= v.all_decode;
    d.max_num_tokens = std::max(d.max_num_tokens, v.num_tokens);
    d.num_microbatches = std::min(d.num_microbatches, v.num_microbatches);
  }
  decision_ = d;
  ++step_;
  num_voted_ = num_working_ = num_leaving_ = 0;
  return true;
}

Decision Agreement::decision_for(int rank) const {
  Decision d = decision_;
  d.counted = ballots_[rank].counted;
  return d;
}

std::vector<int> Agreement::owing() const {
  std::vector<int> ranks;
  if (num_working_ == 0) return ranks;
  for (size_t rank = 0; rank < ballots_.size(); ++rank) {
    if (ballots_[rank].step != step_) ranks.push_back(static_cast<int>(rank));
  }
  return ranks;
}

}  // namespace manta::cluster
