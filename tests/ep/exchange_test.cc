#include "ep/exchange.h"

#include <gtest/gtest.h>

#include "transport_ranks.h"

namespace manta::ep {
namespace {

using testing::Ranks;

// Groups larger than top_k, messages longer than a round, and empty ones.
TEST(AllGather, EveryRankHasEveryMessage) {
  for (const ExpertLayout layout : {ExpertLayout::kContiguous, ExpertLayout::kMasked}) {
    for (const int size : {1, 2, 5, 8}) {
      TransportOptions options;
      options.kind = "auto";
      Ranks ranks = Ranks::make(size, options, layout, /*two_hosts=*/size == 5);
      ranks.shape = {8, 2, size * 3, 3, DType::kBF16};
      ranks.round_tokens = 4;
      ranks.configure(Epoch{1});
      Ranks::each(size, [&](int rank) {
        Lane lane;
        const Exchange exchange{ranks.transports[rank].get(), &lane, ranks.shape, rank, size, ranks.round_tokens};
        for (const size_t length : {0, 1, 16, 17, 300}) {
          const auto message = [&](int r) { return std::string(length, static_cast<char>('a' + r)); };
          const auto all = all_gather(exchange, message(rank));
          ASSERT_TRUE(all.ok()) << all.error().message;
          for (int r = 0; r < size; ++r) EXPECT_EQ((*all)[r], message(r));
        }
      });
    }
  }
}

}  // namespace
}  // namespace manta::ep
