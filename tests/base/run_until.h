// Runs a loop until a condition holds; a generous bound turns a hang into a failure.
#pragma once

#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <functional>

namespace manta::testing {

inline void run_until(boost::asio::io_context& io, const std::function<bool()>& done) {
  constexpr std::chrono::seconds kPatience{20};
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!done() && std::chrono::steady_clock::now() < deadline) {
    io.restart();
    io.run_one_for(kPatience);
  }
  ASSERT_TRUE(done());
}

}  // namespace manta::testing
