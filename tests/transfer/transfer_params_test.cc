// kv_transfer_params as other systems' proxies send them, of both generations of vLLM.
#include "transfer/transfer_params.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "transfer/block_mover.h"

namespace manta::transfer {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string refusal(const std::string& text) {
  const auto params = parse_transfer_params(text);
  if (params.ok()) return "";
  EXPECT_EQ(params.error().code, ErrorCode::kInvalidArgument);
  return params.error().message;
}

TEST(TransferParams, APrefillAsEveryProxyAsksForIt) {
  const auto p = parse_transfer_params(
      R"({"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,)"
      R"("remote_host":null,"remote_port":null,"aborted_request":[]})");
  ASSERT_TRUE(p.ok()) << p.error().message;
  EXPECT_TRUE(p->do_remote_decode);
  EXPECT_FALSE(p->do_remote_prefill);
  EXPECT_EQ(p->key(), "");
}

TEST(TransferParams, AnAnswerComesBackAsItWas) {
  const std::string text = format_transfer_answer({"engine_dp3", "10.0.0.7", 5603, "1f-2", {4, 9, 5}, 130});
  const auto p = parse_transfer_params(text);
  ASSERT_TRUE(p.ok()) << p.error().message;
  EXPECT_TRUE(p->do_remote_prefill);
  EXPECT_EQ(p->remote_engine_id, "engine_dp3");
  EXPECT_EQ(p->remote_host, "10.0.0.7");
  EXPECT_EQ(p->remote_port, 5603);
  EXPECT_EQ(p->key(), "1f-2");
  EXPECT_EQ(p->num_remote_blocks, 3);
}

TEST(TransferParams, BlocksAsOneListOrAListForEachKvGroup) {
  const std::string rest =
      R"("do_remote_prefill":true,"remote_host":"h","remote_port":1,"remote_engine_id":"e","remote_request_id":"r"})";
  EXPECT_EQ(parse_transfer_params(R"({"remote_block_ids":[1,2],)" + rest)->num_remote_blocks, 2);
  EXPECT_EQ(parse_transfer_params(R"({"remote_block_ids":[[1,2,3]],)" + rest)->num_remote_blocks, 3);
  EXPECT_THAT(refusal(R"({"remote_block_ids":[[1],[2]],)" + rest), HasSubstr("remote_block_ids"));
  EXPECT_THAT(refusal(R"({"remote_block_ids":[-1],)" + rest), HasSubstr("remote_block_ids"));
}

TEST(TransferParams, APullThatDoesNotSayFromWhereIsRefused) {
  EXPECT_THAT(refusal(R"({"do_remote_prefill":true})"), HasSubstr("remote_host"));
  EXPECT_THAT(refusal(R"({"do_remote_prefill":true,"remote_host":"h"})"), HasSubstr("remote_port"));
  EXPECT_THAT(refusal(R"({"do_remote_prefill":true,"remote_host":")" + std::string(254, 'h') + R"("})"),
              AllOf(HasSubstr("254"), HasSubstr("253")));
  EXPECT_THAT(refusal(R"({"do_remote_prefill":true,"remote_host":"h","remote_port":65536})"), HasSubstr("65536"));
  EXPECT_THAT(refusal(R"({"do_remote_prefill":true,"remote_host":"h","remote_port":1,"remote_engine_id":"e"})"),
              HasSubstr("remote_request_id"));
  EXPECT_THAT(refusal(R"({"do_remote_prefill":true,"do_remote_decode":true})"), HasSubstr("both"));
  EXPECT_THAT(refusal(R"({"do_remote_prefill":1})"), HasSubstr("do_remote_prefill"));
  EXPECT_THAT(refusal("[]"), HasSubstr("object"));
}

TEST(Coalesce, RunsAreConsecutiveOnBothSides) {
  const std::vector<BlockPair> blocks = {{4, 10}, {5, 11}, {6, 13}, {7, 14}, {9, 15}};
  EXPECT_EQ(coalesce(blocks), (std::vector<BlockRun>{{4, 10, 2}, {6, 13, 2}, {9, 15, 1}}));
  EXPECT_TRUE(coalesce({}).empty());
}

}  // namespace
}  // namespace manta::transfer
