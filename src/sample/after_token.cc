#include "sample/after_token.h"

#include <algorithm>
#include <utility>

namespace manta::sample {
namespace {

class AfterToken : public GrammarMatcher {
 public:
  AfterToken(TokenId token, std::unique_ptr<GrammarMatcher> matcher) : token_(token), matcher_(std::move(matcher)) {}

  bool fill_bitmask(std::span<uint32_t> words) override { return begun_ && matcher_->fill_bitmask(words); }

  bool accept(TokenId token) override {
    if (!begun_) {
      begun_ = token == token_;
      return true;
    }
    if (!matcher_->accept(token)) return false;
    ++num_matched_;
    return true;
  }

  void rollback(int num_tokens) override {
    const int matched = std::min(num_tokens, num_matched_);
    if (matched > 0) matcher_->rollback(matched);
    num_matched_ -= matched;
    if (num_tokens > matched) begun_ = false;  // the token itself is taken back
  }

  bool is_terminated() const override { return begun_ && matcher_->is_terminated(); }

 private:
  const TokenId token_;
  std::unique_ptr<GrammarMatcher> matcher_;
  bool begun_ = false;
  int num_matched_ = 0;  // tokens that matcher_ has accepted
};

}  // namespace

std::unique_ptr<GrammarMatcher> after_token(TokenId token, std::unique_ptr<GrammarMatcher> matcher) {
  return std::make_unique<AfterToken>(token, std::move(matcher));
}

}  // namespace manta::sample
