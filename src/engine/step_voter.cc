#include "engine/step_voter.h"

#include <utility>

namespace manta::engine {

void StepVoter::form(Epoch epoch) {
  epoch_ = epoch;
  step_ = 1;
  sent_.reset();
  decision_.reset();
}

std::optional<cluster::Vote> StepVoter::next(cluster::Vote vote) {
  if (!formed() || decision_) return std::nullopt;
  if (sent_ && sent_->has_work == vote.has_work && sent_->leaving == vote.leaving) return std::nullopt;
  vote.step = step_;
  sent_ = vote;
  return sent_;
}

void StepVoter::on_decision(Epoch epoch, const cluster::Decision& decision) {
  if (epoch == epoch_ && decision.step == step_ && sent_) decision_ = decision;
}

std::optional<cluster::Decision> StepVoter::take_decision() {
  if (!decision_) return std::nullopt;
  ++step_;
  sent_.reset();
  return std::exchange(decision_, std::nullopt);
}

}  // namespace manta::engine
