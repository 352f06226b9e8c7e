#include "text/bpe.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>

namespace manta::text {
namespace {

std::array<TokenId, 256> byte_ids() {
  std::array<TokenId, 256> ids{};
  for (int byte = 0; byte < 256; ++byte) ids[byte] = byte;
  return ids;
}

// The definition, with no thought of speed: the pair of lowest rank, leftmost, until none is left.
std::vector<TokenId> by_definition(const std::vector<Bpe::Merge>& merges, std::string_view word) {
  std::map<std::pair<TokenId, TokenId>, std::pair<size_t, TokenId>> ranks;
  for (size_t i = 0; i < merges.size(); ++i) ranks[{merges[i].left, merges[i].right}] = {i, merges[i].result};
  std::vector<TokenId> ids;
  for (const char c : word) ids.push_back(static_cast<uint8_t>(c));
  while (true) {
    size_t best = ids.size(), best_rank = merges.size();
    TokenId result = -1;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto it = ranks.find({ids[i], ids[i + 1]});
      if (it == ranks.end() || it->second.first >= best_rank) continue;
      best = i;
      best_rank = it->second.first;
      result = it->second.second;
    }
    if (best == ids.size()) return ids;
    ids[best] = result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

// Random merges over "a" to "d" whose results are, as in a vocabulary, one id per string.
std::vector<Bpe::Merge> random_merges(std::mt19937& rng, size_t count) {
  std::map<std::string, TokenId> vocab{{"a", 'a'}, {"b", 'b'}, {"c", 'c'}, {"d", 'd'}};
  std::vector<std::string> names{"a", "b", "c", "d"};
  std::vector<Bpe::Merge> merges;
  while (merges.size() < count) {
    const std::string left = names[rng() % names.size()], right = names[rng() % names.size()];
    if (left.size() + right.size() > 12) continue;
    const auto [it, is_new] = vocab.emplace(left + right, static_cast<TokenId>(256 + vocab.size()));
    if (is_new) names.push_back(left + right);
    merges.push_back({vocab[left], vocab[right], it->second});
  }
  return merges;
}

TEST(Bpe, EqualsTheDefinitionForShortAndLongWords) {
  std::mt19937 rng(11);
  for (int round = 0; round < 60; ++round) {
    const auto merges = random_merges(rng, 1 + rng() % 60);
    const Bpe bpe(merges, byte_ids());
    Bpe::Scratch scratch;
    for (const size_t length : {1, 2, 3, 9, 30, 31, 63, 64, 65, 66, 300}) {
      std::string word;
      for (size_t i = 0; i < length; ++i) word.push_back(static_cast<char>('a' + rng() % 4));
      std::vector<TokenId> ids, again;
      bpe.encode(word, scratch, ids);
      bpe.encode(word, scratch, again);  // the second time from the cache where the word fits
      EXPECT_EQ(ids, by_definition(merges, word)) << word;
      EXPECT_EQ(again, ids) << word;
    }
  }
}

TEST(Bpe, AppendsAndDropsBytesWithoutToken) {
  auto ids_of_bytes = byte_ids();
  ids_of_bytes['x'] = -1;
  const Bpe bpe(std::vector<Bpe::Merge>{{'a', 'b', 300}}, ids_of_bytes);
  Bpe::Scratch scratch;
  std::vector<TokenId> ids{7};
  bpe.encode("axbx", scratch, ids);
  bpe.encode("", scratch, ids);
  EXPECT_EQ(ids, (std::vector<TokenId>{7, 300}));
}

TEST(Bpe, OfAPairListedTwiceTheLaterRankCounts) {
  const std::vector<Bpe::Merge> merges{{'a', 'b', 300}, {'b', 'c', 301}, {'a', 'b', 300}};
  const Bpe bpe(merges, byte_ids());
  Bpe::Scratch scratch;
  std::vector<TokenId> ids;
  bpe.encode("abc", scratch, ids);
  EXPECT_EQ(ids, (std::vector<TokenId>{'a', 301}));
}

}  // namespace
}  // namespace manta::text
