#include "router/kv_peers.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace manta::router {
namespace {

using nlohmann::json;

std::string rank(const char* engine, const char* block_size) {
  return json{{"kv_connector", "NixlConnector"},
              {"engine_id", engine},
              {"host", "10.0.0.1"},
              {"port", 5601},
              {"compatibility", {{"block_size", block_size}, {"cache dtype", "bf16"}}}}
      .dump();
}

TEST(KvPeers, ParamsSayWhereToPullFrom) {
  KvPeers peers;
  const json params = json::parse(peers.pull_params(rank("p0", "64"), rank("d0", "64")));
  EXPECT_EQ(params, (json{{"do_remote_prefill", true},
                          {"do_remote_decode", false},
                          {"remote_engine_id", "p0"},
                          {"remote_host", "10.0.0.1"},
                          {"remote_port", 5601}}));
}

TEST(KvPeers, CachesThatDifferAreNotRead) {
  KvPeers peers;
  EXPECT_EQ(peers.pull_params(rank("p0", "64"), rank("d0", "32")), "");
  EXPECT_NE(peers.pull_params(rank("p0", "64"), rank("d1", "64")), "");  // only that pair
}

TEST(KvPeers, NoConnectorNoPull) {
  KvPeers peers;
  for (const char* none : {"", "{}", "[]", "{", R"({"kv_connector":"DecodeBenchConnector"})"}) {
    EXPECT_EQ(peers.pull_params(none, rank("d0", "64")), "") << none;
    EXPECT_EQ(peers.pull_params(rank("p0", "64"), none), "") << none;
  }
}

}  // namespace
}  // namespace manta::router
