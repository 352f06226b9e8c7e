#include "router/endpoints.h"

#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <cstdio>
#include <fstream>

namespace manta::router {
namespace {

class EndpointsTest : public ::testing::Test {
 protected:
  void write(const std::string& text) {
    const std::string half = path_ + ".tmp";
    std::ofstream(half) << text;
    ASSERT_EQ(std::rename(half.c_str(), path_.c_str()), 0);
  }
  void TearDown() override { std::remove(path_.c_str()); }

  const std::string path_ = ::testing::TempDir() + "manta_endpoints_test.json";
};

TEST_F(EndpointsTest, BothForms) {
  write(R"({"prefill": ["tcp:10.0.0.1:7000"], "decode": ["unix:@d", "tcp:h:1"]})");
  EXPECT_EQ(*read_endpoints(path_), (Endpoints{{"tcp:10.0.0.1:7000"}, {"unix:@d", "tcp:h:1"}}));
  write(R"({"mixed": ["unix:@m"]})");
  EXPECT_EQ(*read_endpoints(path_), (Endpoints{{}, {"unix:@m"}}));
}

TEST_F(EndpointsTest, WhatIsWrongIsNamed) {
  EXPECT_EQ(read_endpoints("/nonexistent/endpoints.json").error().code, ErrorCode::kNotFound);
  for (const char* text : {"", "[]", "{}", R"({"decode": [], "mixed": []})", R"({"decode": "unix:@d"})",
                           R"({"decode": [7]})", R"({"decode": ["10.0.0.1:7000"]})", R"({"mixed": [], "decod": []})"}) {
    write(text);
    const auto read = read_endpoints(path_);
    ASSERT_FALSE(read.ok()) << text;
    EXPECT_NE(read.error().message.find(path_), std::string::npos) << read.error().message;
  }
}

TEST_F(EndpointsTest, AChangeIsSeenAndABadFileChangesNothing) {
  write(R"({"mixed": ["unix:@a"]})");
  boost::asio::io_context io;
  std::vector<Endpoints> seen;
  EndpointsWatch watch(io, path_, [&](const Endpoints& endpoints) {
    seen.push_back(endpoints);
    io.stop();
  });
  write("{");
  io.run_one();
  EXPECT_TRUE(seen.empty());
  write(R"({"mixed": ["unix:@a", "unix:@b"]})");
  io.run_for(std::chrono::seconds(20));
  ASSERT_EQ(seen.size(), 1u);
  EXPECT_EQ(seen[0], (Endpoints{{}, {"unix:@a", "unix:@b"}}));
}

}  // namespace
}  // namespace manta::router
