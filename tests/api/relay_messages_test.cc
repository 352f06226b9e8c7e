#include "api/relay/messages.h"

#include <gtest/gtest.h>

#include <random>

namespace manta::api {
namespace {

RelayRequest some_request() {
  RelayRequest m;
  m.stream = 7;
  m.method = "POST";
  m.path = "/v1/completions";
  m.headers = {{"X-Request-Id", "abc"}};
  m.body = "{}";
  m.tokenized = true;
  m.relayed.prompts = {{1, 2, 3}, {4}};
  m.relayed.seed = 1ull << 62;
  m.relayed.delivered = {{{5, 6}, true}, {{}, false}};
  return m;
}

std::string some_pieces() {
  std::string payload;
  Piece first{.stream = 1, .status = 200, .content_type = "text/event-stream", .bytes = "data: x\n\n"};
  first.headers = {{"Retry-After", "1"}};
  first.tokens = {{.choice = 2, .finished = true, .tokens = {9, 10}}};
  append(payload, first);
  append(payload, {.stream = 2, .bytes = "rest", .end = true});
  return payload;
}

TEST(RelayMessagesTest, RequestTravelsWhole) {
  const auto back = decode_relay_request(encode(some_request()));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(encode(*back), encode(some_request()));
  EXPECT_EQ(back->relayed.delivered[0].tokens, (std::vector<TokenId>{5, 6}));
  EXPECT_TRUE(back->relayed.delivered[0].finished);
}

TEST(RelayMessagesTest, PiecesTravelOneBehindTheOther) {
  const std::string payload = some_pieces();
  std::string again;
  size_t num = 0;
  const Status decoded = decode_pieces(payload, [&](const Piece& piece) {
    append(again, piece);
    if (num++ == 0) {
      EXPECT_EQ(piece.status, 200);
      EXPECT_EQ(piece.bytes, "data: x\n\n");
      EXPECT_EQ(piece.tokens.at(0).tokens, (std::vector<TokenId>{9, 10}));
    } else {
      EXPECT_TRUE(piece.end);
    }
  });
  EXPECT_TRUE(decoded.ok()) << decoded.error().message;
  EXPECT_EQ(num, 2u);
  EXPECT_EQ(again, payload);
}

// Every cut, and bytes turned at random: an error or a message, never more.
TEST(RelayMessagesTest, DamagedBytesAreRefused) {
  std::mt19937 random(7);
  const std::string messages[] = {encode(some_request()),
                                  some_pieces(),
                                  encode(RelayBody{3, true, "abc"}),
                                  encode(RankViews{.pid = 1, .welcome = "w", .ranks = {{.rank = 3, .ready = true}}}),
                                  encode(RelayCancel{4}),
                                  encode(RelayHello{"r"})};
  const auto decode_all = [](const std::string& bytes) {
    size_t refused = 0;
    refused += !decode_relay_hello(bytes).ok();
    refused += !decode_relay_request(bytes).ok();
    refused += !decode_relay_body(bytes).ok();
    refused += !decode_relay_cancel(bytes).ok();
    refused += !decode_rank_views(bytes).ok();
    refused += !decode_pieces(bytes, [](const Piece&) {}).ok();
    return refused;
  };
  for (const auto& message : messages) {
    EXPECT_EQ(decode_all(message), 5u) << "each message is of one kind only";
    for (size_t cut = 1; cut < message.size(); ++cut) EXPECT_GE(decode_all(message.substr(0, cut)), 5u);
    for (int i = 0; i < 2000; ++i) {
      std::string damaged = message;
      for (unsigned j = 0; j <= random() % 3; ++j) damaged[random() % damaged.size()] = static_cast<char>(random());
      EXPECT_GE(decode_all(damaged), 4u);
    }
  }
}

TEST(RelayMessagesTest, EachLoopHasItsAddress) {
  EXPECT_EQ(*loop_address("unix:@x", 0), "unix:@x");
  EXPECT_EQ(*loop_address("unix:@x", 2), "unix:@x-2");
  EXPECT_EQ(*loop_address("tcp:h:7000", 3), "tcp:h:7003");
  EXPECT_EQ(*loop_address("tcp:h:0", 3), "tcp:h:0");
  EXPECT_FALSE(loop_address("tcp:h:65535", 1).ok());
  EXPECT_FALSE(loop_address("tcp:h", 1).ok());
}

}  // namespace
}  // namespace manta::api
