#include "sample/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "sample/philox.h"

namespace manta::sample {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

double gumbel(uint64_t seed, int32_t position, TokenId id) {
  return -std::log(-std::log(open_uniform(token_bits(seed, position, id))));
}

// No token draws more noise than this; a token further below the best score cannot win and is not evaluated.
const double kMaxGumbel = -std::log(-std::log(1.0 - 0x1p-33));

bool all_finite(std::span<const float> values) {
  constexpr uint32_t kExponent = 0x7f800000;  // all ones in a NaN or an infinity; an integer max vectorises
  uint32_t max = 0;
  for (float x : values) max = std::max(max, std::bit_cast<uint32_t>(x) & kExponent);
  return max != kExponent;
}

// Highest value, lowest id among equals; -1 when everything is masked.
TokenId argmax(std::span<const float> logits) {
  TokenId best = -1;
  float best_value = kMasked;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] > best_value) {
      best_value = logits[i];
      best = static_cast<TokenId>(i);
    }
  }
  return best;
}

bool changes_logits(const RowInput& in) {
  const SamplingParams& p = *in.params;
  return !in.token_bitmask.empty() || !p.allowed_token_ids.empty() || !p.bad_words.empty() || p.min_tokens > 0 ||
         !p.logit_bias.empty() || p.has_penalties();
}

void mask_by_bitmask(std::span<const uint32_t> bitmask, std::span<float> logits) {
  for (size_t i = 0; i < logits.size(); ++i) {
    if ((bitmask[i / 32] >> (i % 32) & 1) == 0) logits[i] = kMasked;
  }
}

void mask_bad_words(const RowInput& in, std::span<float> logits) {
  const auto output = in.tokens.subspan(in.num_prompt_tokens);
  for (const auto& word : in.params->bad_words) {
    const size_t prefix = word.size() - 1;
    if (prefix > output.size()) continue;
    if (std::equal(word.begin(), word.end() - 1, output.end() - prefix)) logits[word.back()] = kMasked;
  }
}

void mask_end_tokens(const RowInput& in, std::span<float> logits) {
  const SamplingParams& p = *in.params;
  const auto num_output = static_cast<int64_t>(in.tokens.size()) - in.num_prompt_tokens;
  if (num_output >= p.min_tokens) return;
  for (TokenId id : p.stop_token_ids) logits[id] = kMasked;
  if (p.ignore_eos) return;
  for (TokenId id : p.eos_token_ids) logits[id] = kMasked;
}

}  // namespace

struct RowSampler::Scratch {
  explicit Scratch(int vocab_size) : logits(vocab_size), marks(vocab_size, 0), ids(vocab_size) {}

  std::span<float> adjust(const RowInput& in);
  TokenId draw(const SamplingParams& p, int32_t position, TokenId likeliest);
  void mask_not_allowed(const std::vector<TokenId>& allowed);
  void penalize(const RowInput& in);
  std::span<TokenId> filter(const SamplingParams& p, std::span<const float> z);
  std::span<TokenId> keep_top_k(std::span<TokenId> kept, int top_k, std::span<const float> z);
  std::span<TokenId> keep_top_p(std::span<TokenId> kept, float top_p, std::span<const float> z);

  std::vector<float> logits;
  std::vector<int32_t> marks;  // all zero between uses
  std::vector<TokenId> ids;
};

void RowSampler::Scratch::mask_not_allowed(const std::vector<TokenId>& allowed) {
  for (TokenId id : allowed) marks[id] = 1;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (marks[i] == 0) logits[i] = kMasked;
  }
  for (TokenId id : allowed) marks[id] = 0;
}

// Counts are taken from the sequence itself, so that preemption and resubmission need to carry nothing.
void RowSampler::Scratch::penalize(const RowInput& in) {
  const SamplingParams& p = *in.params;
  const auto output = in.tokens.subspan(in.num_prompt_tokens);
  if (p.repetition_penalty != 1.0f) {
    for (TokenId id : in.tokens) {
      if (marks[id]++ != 0) continue;
      float& x = logits[id];
      // A penalty near 0 may overflow; two infinities would have no difference.
      x = std::min(x > 0.0f ? x / p.repetition_penalty : x * p.repetition_penalty, std::numeric_limits<float>::max());
    }
    for (TokenId id : in.tokens) marks[id] = 0;
  }
  for (TokenId id : output) ++marks[id];
  for (TokenId id : output) {
    if (marks[id] == 0) continue;  // seen before in this loop
    logits[id] -= p.frequency_penalty * static_cast<float>(marks[id]);
    logits[id] -= p.presence_penalty;
    marks[id] = 0;
  }
}

std::span<TokenId> RowSampler::Scratch::keep_top_k(std::span<TokenId> kept, int top_k, std::span<const float> z) {
  const auto better = [z](TokenId a, TokenId b) { return z[a] != z[b] ? z[a] > z[b] : a < b; };
  if (top_k > 0 && static_cast<size_t>(top_k) < kept.size()) {
    std::nth_element(kept.begin(), kept.begin() + top_k, kept.end(), better);
    kept = kept.first(top_k);
    std::sort(kept.begin(), kept.end());  // back in id order, which fixes the order of sums
  }
  return kept;
}

// The shortest run of the most likely tokens whose probability reaches top_p; at least one.
std::span<TokenId> RowSampler::Scratch::keep_top_p(std::span<TokenId> kept, float top_p, std::span<const float> z) {
  if (top_p >= 1.0f || kept.empty()) return kept;
  double total = 0.0;
  for (TokenId id : kept) total += std::exp(z[id]);
  const auto worse = [z](TokenId a, TokenId b) { return z[a] != z[b] ? z[a] < z[b] : a > b; };
  std::make_heap(kept.begin(), kept.end(), worse);
  auto end = kept.end();
  double mass = 0.0;
  while (end != kept.begin()) {
    std::pop_heap(kept.begin(), end, worse);  // the best one moves to *--end
    --end;
    mass += std::exp(z[*end]);
    if (mass >= top_p * total) break;
  }
  return {end, kept.end()};
}

std::span<TokenId> RowSampler::Scratch::filter(const SamplingParams& p, std::span<const float> z) {
  // p_i / p_max = exp(z_i), because z is 0 at the best token.
  const float lowest = p.min_p > 0.0f ? std::log(p.min_p) : std::numeric_limits<float>::lowest();
  size_t num_kept = 0;
  for (size_t i = 0; i < z.size(); ++i) {
    if (z[i] >= lowest) ids[num_kept++] = static_cast<TokenId>(i);
  }
  return keep_top_p(keep_top_k({ids.data(), num_kept}, p.top_k, z), p.top_p, z);
}

// Everything up to the penalties, on a copy.
std::span<float> RowSampler::Scratch::adjust(const RowInput& in) {
  const SamplingParams& p = *in.params;
  std::copy(in.logits.begin(), in.logits.end(), logits.begin());
  if (!in.token_bitmask.empty()) mask_by_bitmask(in.token_bitmask, logits);
  if (!p.allowed_token_ids.empty()) mask_not_allowed(p.allowed_token_ids);
  mask_bad_words(in, logits);
  mask_end_tokens(in, logits);
  for (const auto& [id, bias] : p.logit_bias) logits[id] += bias;
  if (p.has_penalties()) penalize(in);
  return logits;
}

// Temperature, filters and the Gumbel-max draw over the adjusted logits, of which `likeliest` is the argmax.
TokenId RowSampler::Scratch::draw(const SamplingParams& p, int32_t position, TokenId likeliest) {
  // Subtracting first keeps a tiny temperature from overflowing: the best token is 0, never inf - inf.
  const float max = logits[likeliest];
  for (float& x : logits) x = (x - max) / p.temperature;

  TokenId best = likeliest;  // no filter removes it
  double best_score = gumbel(p.seed, position, likeliest);
  const auto consider = [&](TokenId id) {
    if (logits[id] + kMaxGumbel < best_score) return;
    const double score = logits[id] + gumbel(p.seed, position, id);
    if (score > best_score || (score == best_score && id < best)) {
      best_score = score;
      best = id;
    }
  };
  if (p.top_k == 0 && p.top_p >= 1.0f && p.min_p == 0.0f) {
    for (size_t i = 0; i < logits.size(); ++i) consider(static_cast<TokenId>(i));
  } else {
    for (TokenId id : filter(p, logits)) consider(id);
  }
  return best;
}

RowSampler::RowSampler(int vocab_size) : scratch_(std::make_unique<Scratch>(vocab_size)) {}
RowSampler::~RowSampler() = default;
RowSampler::RowSampler(RowSampler&&) noexcept = default;
RowSampler& RowSampler::operator=(RowSampler&&) noexcept = default;

RowChoice RowSampler::choose(const RowInput& in) {
  const SamplingParams& p = *in.params;
  if (!all_finite(in.logits)) return {-1, RowFault::kNotFinite};
  if (p.greedy() && !changes_logits(in)) return {argmax(in.logits), RowFault::kNone};
  const std::span<float> logits = scratch_->adjust(in);
  const TokenId likeliest = argmax(logits);
  if (likeliest < 0) return {-1, RowFault::kNothingAllowed};
  if (p.greedy()) return {likeliest, RowFault::kNone};
  return {scratch_->draw(p, static_cast<int32_t>(in.tokens.size()), likeliest), RowFault::kNone};
}

void RowSampler::logprobs(std::span<const float> logits, TokenId token, int num_best, TokenLogprobs& out) {
  const float max = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (float x : logits) sum += std::exp(x - max);
  const auto log_sum = static_cast<float>(std::log(sum));
  const auto logprob = [&](TokenId id) { return (logits[id] - max) - log_sum; };

  num_best = std::clamp(num_best, 0, static_cast<int>(logits.size()));
  out.token_ids.resize(1 + num_best);
  out.logprobs.resize(1 + num_best);
  out.token_ids[0] = token;
  out.logprobs[0] = logprob(token);
  out.rank =
      1 + static_cast<int32_t>(std::count_if(logits.begin(), logits.end(), [&](float x) { return x > logits[token]; }));
  if (num_best == 0) return;
  auto& ids = scratch_->ids;
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<TokenId>(i);
  // NaN would break the strict order that partial_sort needs; such a row is a fault anyway, so it keeps id order.
  if (all_finite(logits)) {
    std::partial_sort(ids.begin(), ids.begin() + num_best, ids.end(), [logits](TokenId a, TokenId b) {
      return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    });
  }
  for (int i = 0; i < num_best; ++i) {
    out.token_ids[1 + i] = ids[i];
    out.logprobs[1 + i] = logprob(ids[i]);
  }
}

const char* to_string(RowFault fault) {
  switch (fault) {
    case RowFault::kNone: return "no fault";
    case RowFault::kNotFinite: return "the model's logits hold a NaN or an infinity";
    case RowFault::kNothingAllowed:
      return "grammar, allowed_token_ids, bad_words and min_tokens leave no token to choose";
  }
  return "?";
}

}  // namespace manta::sample
