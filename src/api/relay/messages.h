// What router and api say to each other over frames: kHello and kRankViews first, then requests one way and pieces of
// their answers the other, many at once on one connection, told apart by stream number.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/relay/relayed.h"
#include "base/result.h"

namespace manta::api {

using StreamId = uint64_t;  // drawn by the router, never used again on the connection
using HeaderList = std::vector<std::pair<std::string, std::string>>;

// kHello, router -> api.
struct RelayHello {
  std::string process;  // "router pid 4711 loop 0", for logs
};

// kRequest, router -> api. A body beyond kMaxPartBytes follows in kBody frames, the last of which has more = false.
struct RelayRequest {
  StreamId stream = 0;
  std::string method, path, query;
  HeaderList headers;
  std::string body;
  bool more = false;
  bool tokenized = false;  // relayed counts; false for requests that generate nothing (GET /metrics)
  Relayed relayed;
};
struct RelayBody {
  StreamId stream = 0;
  bool more = false;
  std::string bytes;
};

// kCancel, router -> api: nothing more is wanted. A stream that has ended is no error.
struct RelayCancel {
  StreamId stream = 0;
};

// kPieces, api -> router: of many streams, one behind the other. Views: whoever packs or unpacks keeps the bytes.
struct PieceTokens {
  int32_t choice = 0;
  bool finished = false;
  std::vector<TokenId> tokens;  // whose text this piece's bytes complete
};
struct Piece {
  StreamId stream = 0;
  int32_t status = 0;             // the answer's head comes with this piece; 0: it came before
  std::string_view content_type;  // with the head
  std::vector<std::pair<std::string_view, std::string_view>> headers;  // with the head
  std::vector<PieceTokens> tokens;
  std::string_view bytes;
  bool end = false;
};

// kRankViews, api -> router: first after kHello, then whenever it changed.
struct RankView {
  int32_t rank = 0;
  bool ready = false;
  int32_t num_running = 0, num_waiting = 0;
  int32_t num_free_blocks = 0, num_blocks = 0;
  std::string kv_transfer;  // Welcome::kv_transfer
};
struct RankViews {
  int32_t pid = 0;
  bool draining = false;
  std::string welcome;  // engine::Welcome, encoded; empty before an engine is ready
  std::vector<RankView> ranks;
};

inline constexpr size_t kMaxPartBytes = 1 << 20;

std::string encode(const RelayHello&);
std::string encode(const RelayRequest&);
std::string encode(const RelayBody&);
std::string encode(const RelayCancel&);
std::string encode(const RankViews&);
void append(std::string& payload, const Piece& piece);
// kDataLoss for bytes that are no such message.
Result<RelayHello> decode_relay_hello(std::string_view payload);
Result<RelayRequest> decode_relay_request(std::string_view payload);
Result<RelayBody> decode_relay_body(std::string_view payload);
Result<RelayCancel> decode_relay_cancel(std::string_view payload);
Result<RankViews> decode_rank_views(std::string_view payload);
Status decode_pieces(std::string_view payload, const std::function<void(const Piece&)>& take);

// Where loop `index` of an api process takes routers, whose loop 0 does at base: "unix:@x" -> "unix:@x-1",
// "tcp:host:7000" -> "tcp:host:7001", "tcp:host:0" as it is. Each loop announces its own to the coordinator.
Result<std::string> loop_address(const std::string& base, int index);

}  // namespace manta::api
