// The first words between two ranks of a group. Fixed-size records: what a stranger sends is refused, never parsed.
//   connector -> listener  Hello   (over a unix socket: with its segment)
//   listener -> connector  Answer  (likewise, when it is a yes)
// The listener answers once it is itself at the connector's epoch, or past it: then it says which one is current.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>

#include "base/ids.h"
#include "ep/expert_map.h"
#include "ep/group/group_shape.h"
#include "ep/group/segment.h"

namespace manta::ep {

using Key = std::array<uint8_t, 16>;  // of a listener; in its address, so that only its group knows it

struct Hello {
  uint32_t magic = kMagic;
  int32_t rank = -1;
  uint64_t epoch = 0;
  Key key{};
  int32_t size = 0, layout = 0, hidden_size = 0, top_k = 0, num_physical = 0, num_local = 0, wire_dtype = 0,
          max_num_tokens = 0, num_microbatches = 0;
  int32_t padding = 0;

  static constexpr uint32_t kMagic = 0x4550'0001;  // changes with every field here and in MessageHeader
  static Hello of(const EpTopology& topology, const GroupShape& shape, const Key& key);
  GroupShape shape() const;
};

struct Answer {
  enum Verdict : uint32_t { kYes = 1, kOtherEpoch = 2, kNo = 3 };
  uint32_t magic = Hello::kMagic;
  uint32_t verdict = kNo;
  uint64_t epoch = 0;     // the listener's current one
  char reason[240] = {};  // of kNo
};
static_assert(std::is_trivially_copyable_v<Hello> && std::is_trivially_copyable_v<Answer>);

// Where a transport listens: "unix=@name;tcp=host:port;key=hex", each way only when it is there.
struct ListenAddress {
  std::string unix_name;  // abstract, without its zero byte
  std::string tcp_host;
  uint16_t tcp_port = 0;
  Key key{};
  std::string text() const;
  static std::optional<ListenAddress> parse(const std::string& text);
};
Key random_key();

// A record and perhaps a descriptor over a unix stream, never blocking. send_record: 0 or errno.
int send_record(int socket, const void* record, size_t num_bytes, int fd_to_pass);
// Bytes read, 0 at the end, -1 with errno. A descriptor that came along replaces *passed.
ssize_t receive_record(int socket, void* buffer, size_t num_bytes, Fd* passed);

}  // namespace manta::ep
