#include "api/relay/messages.h"

#include <charconv>

#include "base/pack.h"

namespace manta::api {

static auto fields(Delivered& m) {
  return std::tie(m.tokens, m.finished);
}
static auto fields(Relayed& m) {
  return std::tie(m.prompts, m.transfer_id, m.kv_transfer_params, m.prefill_only, m.data_parallel_rank, m.seed,
                  m.created, m.delivered);
}
static auto fields(RelayHello& m) {
  return std::tie(m.process);
}
static auto fields(RelayRequest& m) {
  return std::tie(m.stream, m.method, m.path, m.query, m.headers, m.body, m.more, m.tokenized, m.relayed);
}
static auto fields(RelayBody& m) {
  return std::tie(m.stream, m.more, m.bytes);
}
static auto fields(RelayCancel& m) {
  return std::tie(m.stream);
}
static auto fields(PieceTokens& m) {
  return std::tie(m.choice, m.finished, m.tokens);
}
static auto fields(Piece& m) {
  return std::tie(m.stream, m.status, m.content_type, m.headers, m.tokens, m.bytes, m.end);
}
static auto fields(RankView& m) {
  return std::tie(m.rank, m.ready, m.num_running, m.num_waiting, m.num_free_blocks, m.num_blocks, m.kv_transfer);
}
static auto fields(RankViews& m) {
  return std::tie(m.pid, m.draining, m.welcome, m.ranks);
}

std::string encode(const RelayHello& m) {
  return pack_message(m);
}
std::string encode(const RelayRequest& m) {
  return pack_message(m);
}
std::string encode(const RelayBody& m) {
  return pack_message(m);
}
std::string encode(const RelayCancel& m) {
  return pack_message(m);
}
std::string encode(const RankViews& m) {
  return pack_message(m);
}

namespace {

// What msgpack writes to.
struct Appender {
  std::string& out;
  void write(const char* bytes, size_t n) { out.append(bytes, n); }
};

}  // namespace

void append(std::string& payload, const Piece& piece) {
  Appender appender{payload};
  msgpack::pack(appender, piece);
}

Result<RelayHello> decode_relay_hello(std::string_view payload) {
  return unpack_message<RelayHello>(payload, "relay hello");
}
Result<RelayRequest> decode_relay_request(std::string_view payload) {
  return unpack_message<RelayRequest>(payload, "relay request");
}
Result<RelayBody> decode_relay_body(std::string_view payload) {
  return unpack_message<RelayBody>(payload, "relay body");
}
Result<RelayCancel> decode_relay_cancel(std::string_view payload) {
  return unpack_message<RelayCancel>(payload, "relay cancel");
}
Result<RankViews> decode_rank_views(std::string_view payload) {
  return unpack_message<RankViews>(payload, "rank views");
}
Status decode_pieces(std::string_view payload, const std::function<void(const Piece&)>& take) {
  return unpack_each<Piece>(payload, "piece", take);
}

Result<std::string> loop_address(const std::string& base, int index) {
  if (index == 0) return base;
  if (base.starts_with("unix:")) return fmt::format("{}-{}", base, index);
  const size_t colon = base.rfind(':');
  int port = 0;
  const char* end = base.data() + base.size();
  const auto [ptr, ec] = std::from_chars(base.data() + (colon == std::string::npos ? 0 : colon + 1), end, port);
  if (!base.starts_with("tcp:") || ec != std::errc{} || ptr != end || port < 0 || port + index > 65535) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("address \"{}\": loop {} of the api listens {} ports above it; give unix:@name or "
                             "tcp:host:port with room above",
                             base, index, index));
  }
  return port == 0 ? base : fmt::format("{}{}", base.substr(0, colon + 1), port + index);
}

}  // namespace manta::api
