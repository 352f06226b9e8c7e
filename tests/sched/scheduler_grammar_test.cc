#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "simulation.h"

namespace manta::sched {
namespace {

using ::testing::HasSubstr;

// Allows one sequence of tokens, then the end token.
class OneText : public sample::GrammarMatcher {
 public:
  OneText(std::vector<TokenId> text, TokenId end) : text_(std::move(text)) { text_.push_back(end); }
  bool fill_bitmask(std::span<uint32_t> words) override {
    std::ranges::fill(words, 0u);
    words[text_[at_] / 32] |= 1u << (text_[at_] % 32);
    return true;
  }
  bool accept(TokenId token) override {
    if (is_terminated() || token != text_[at_]) return false;
    ++at_;
    return true;
  }
  void rollback(int num_tokens) override { at_ -= num_tokens; }
  bool is_terminated() const override { return at_ == text_.size(); }

 private:
  std::vector<TokenId> text_;
  size_t at_ = 0;
};

const std::vector<TokenId> kText = {11, 40, 3, 3, 27, 8, 9};
constexpr TokenId kEnd = 49;

SchedulerOptions small() {
  SchedulerOptions options;
  options.num_blocks = 64;
  options.block_size = 4;
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 16;
  options.max_model_len = 128;
  options.vocab_size = Simulation::kVocab;
  return options;
}

Request constrained(uint64_t serial, int max_tokens) {
  Request request = make_request(serial, counting_prompt(20), max_tokens);
  request.sampling.eos_token_ids = {kEnd};
  request.grammar = std::make_shared<OneText>(kText, kEnd);
  return request;
}

std::vector<TokenId> whole_text() {
  auto out = kText;
  out.push_back(kEnd);
  return out;
}

TEST(SchedulerGrammar, EveryTokenIsMaskedAlsoWithAsyncAndDrafts) {
  for (int depth : {1, 2}) {
    for (int drafts : {0, 2}) {
      SchedulerOptions options = small();
      options.num_speculative_tokens = drafts;
      Simulation sim(options, depth);
      sim.on_plan = [](const StepPlan& plan) {
        for (const auto& decode : plan.decodes) {
          EXPECT_TRUE(decode.token_bitmask.empty() || decode.max_num_tokens == 1);
        }
        for (const auto& prefill : plan.prefills) {
          EXPECT_TRUE(prefill.token_bitmask.empty() || prefill.samples);
        }
      };
      ASSERT_TRUE(sim.scheduler->add(constrained(1, 30)).ok());
      ASSERT_TRUE(sim.scheduler->add(make_request(2, counting_prompt(9), 30)).ok());
      sim.run();
      EXPECT_EQ(sim.outcomes[1].tokens, whole_text());
      EXPECT_EQ(sim.outcomes[1].finish, FinishReason::kStop);
      EXPECT_EQ(sim.outcomes[2].tokens.size(), 30u);
    }
  }
}

TEST(SchedulerGrammar, ACompleteTextEndsEvenWhenEndTokensAreIgnored) {
  Simulation sim(small());
  Request request = constrained(1, 30);
  request.sampling.ignore_eos = true;
  ASSERT_TRUE(sim.scheduler->add(request).ok());
  sim.run();
  EXPECT_EQ(sim.outcomes[1].tokens, whole_text());
  EXPECT_EQ(sim.outcomes[1].finish, FinishReason::kStop);
}

TEST(SchedulerGrammar, PreemptionKeepsItsPlace) {
  SchedulerOptions options = small();
  options.num_blocks = 12;
  for (int depth : {1, 2}) {
    Simulation sim(options, depth);
    ASSERT_TRUE(sim.scheduler->add(make_request(2, counting_prompt(20, 7), 20)).ok());
    ASSERT_TRUE(sim.scheduler->add(constrained(1, 20)).ok());
    sim.run();
    EXPECT_GE(sim.scheduler->stats().num_preemptions, 1u);
    EXPECT_EQ(sim.outcomes[1].tokens, whole_text());
  }
}

TEST(SchedulerGrammar, AResubmittedTextGoesOnInItsGrammar) {
  Simulation sim(small());
  Request request = constrained(1, 20);
  request.tokens.insert(request.tokens.end(), kText.begin(), kText.begin() + 3);
  ASSERT_TRUE(sim.scheduler->add(request).ok());
  sim.run();
  const auto text = whole_text();
  EXPECT_EQ(sim.outcomes[1].tokens, std::vector<TokenId>(text.begin() + 3, text.end()));

  request = constrained(2, 20);
  request.tokens.push_back(kText[1]);
  EXPECT_THAT(sim.scheduler->add(request).error().message, HasSubstr("generated token 0 (id 40) breaks"));
}

TEST(SchedulerGrammar, ATokenAgainstTheGrammarIsAnErrorOfTheRequest) {
  Simulation sim(small());
  ASSERT_TRUE(sim.scheduler->add(constrained(1, 20)).ok());
  auto plan = sim.scheduler->plan({});
  ASSERT_TRUE(plan);
  ASSERT_TRUE(sim.scheduler->collect(plan->id, {}).ok());  // the first piece of its prompt
  plan = sim.scheduler->plan({});
  ASSERT_TRUE(plan);
  ASSERT_EQ(plan->prefills[0].token_bitmask.size(), 2u);
  auto events = sim.scheduler->collect(plan->id, {{plan->prefills[0].slot, 1, {12}, {}, {}, 0, {}}});
  ASSERT_TRUE(events.ok());
  EXPECT_EQ((*events)[0].finish, FinishReason::kError);
  EXPECT_TRUE((*events)[0].tokens.empty());
  EXPECT_THAT((*events)[0].error.message, HasSubstr("token 12"));
  EXPECT_FALSE(sim.scheduler->has_requests());
}

TEST(SchedulerGrammar, NeedsTheVocabularysSize) {
  SchedulerOptions options = small();
  options.vocab_size = 0;
  Simulation sim(options);
  EXPECT_THAT(sim.scheduler->add(constrained(1, 20)).error().message, HasSubstr("without grammars"));
}

// Not a grammar's: what the device could not sample.
TEST(SchedulerGrammar, ADevicesErrorEndsOneRequest) {
  Simulation sim(small());
  ASSERT_TRUE(sim.scheduler->add(make_request(1, counting_prompt(4), 5)).ok());
  ASSERT_TRUE(sim.scheduler->add(make_request(2, counting_prompt(5), 5)).ok());
  auto plan = sim.scheduler->plan({});
  ASSERT_TRUE(plan);
  std::vector<SlotResult> results(2);
  results[0].slot = plan->prefills[0].slot;
  results[0].error = "logits are not finite";
  results[1] = {plan->prefills[1].slot, 1, {3}, {}, {}, 0, {}};
  auto events = sim.scheduler->collect(plan->id, results);
  ASSERT_TRUE(events.ok());
  ASSERT_EQ(events->size(), 2u);
  for (const auto& event : *events) {
    if (event.id.serial == 1) {
      EXPECT_EQ(event.error.message, "logits are not finite");
    } else {
      EXPECT_EQ(event.finish, FinishReason::kNone);
    }
  }
  EXPECT_EQ(sim.scheduler->stats().num_running, 1);
}

}  // namespace
}  // namespace manta::sched
