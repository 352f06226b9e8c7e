// Response heads as bytes.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/http/message.h"

namespace manta::api {

struct ResponseHead {
  int status = 200;
  std::string_view content_type;
  std::optional<size_t> content_length;  // not given: chunked, or until the connection closes
  bool chunked = false;
  bool keep_alive = true;
};

// Appends "HTTP/1.1 200 OK\r\n…\r\n\r\n". Header values of the handler's are cut at the first control character, so
// that no value taken from a request can start a header of its own.
void append_head(std::string& out, const ResponseHead& head, const std::vector<HttpHeader>& headers);

}  // namespace manta::api
