// The worker half of a connector that pulls: lease table, pull table, side channel and mover, run by two threads of
// their own (one for the side channel and its timers, one that moves bytes), so that transfers go on whatever the
// engine is doing. Both park when nothing is to do.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "base/result.h"
#include "transfer/block_mover.h"
#include "transfer/kv_connector.h"
#include "transfer/side_channel.h"

namespace manta::transfer {

struct ExchangeOptions {
  std::string engine_id;
  std::string host = "127.0.0.1";  // where the side channel listens and peers reach it
  int port = 0;                    // 0: any free one
  int block_size = 64;
  LeaseOptions lease;
  Compatibility compatibility;  // what the connector and model are; the cache's geometry is added here
};

// What goes through the scheduler in KvAction::remote of a save.
struct OfferNote {
  enum class Kind : uint8_t { kGrown, kFinal, kRestarted };
  Kind kind = Kind::kGrown;
  std::string key;
};
std::string encode(const OfferNote& note);

class Exchange : public KvConnectorWorker {
 public:
  // Listens. Peers are refused until register_cache.
  static Result<std::unique_ptr<Exchange>> listen(ExchangeOptions options, std::unique_ptr<BlockMover> mover);
  virtual int port() const = 0;
};

}  // namespace manta::transfer
