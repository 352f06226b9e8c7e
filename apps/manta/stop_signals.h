// SIGINT and SIGTERM in a process that keeps others: the first asks it to drain, the second to leave at once.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <functional>

namespace manta {

class StopSignals {
 public:
  StopSignals(boost::asio::io_context& io, std::function<void()> drain, std::function<void()> leave);
  void close() { signals_.cancel(); }  // nothing keeps the loop running on their account

 private:
  void on_first(int signal);

  boost::asio::signal_set signals_;
  std::function<void()> drain_, leave_;
};

}  // namespace manta
