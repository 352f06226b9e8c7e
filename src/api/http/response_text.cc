#include "api/http/response_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <iterator>

namespace manta::api {
namespace {

// RFC 9110 §5.6.7, "Sun, 06 Nov 1994 08:49:37 GMT"; formatted once a second and thread.
std::string_view date_now() {
  thread_local std::time_t second = 0;
  thread_local char text[40] = "";
  const std::time_t now = std::time(nullptr);
  if (now != second) {
    second = now;
    std::tm parts{};
    gmtime_r(&now, &parts);
    std::strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &parts);
  }
  return text;
}

std::string_view until_control_character(std::string_view value) {
  const auto* end = std::find_if(value.begin(), value.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; });
  return value.substr(0, static_cast<size_t>(end - value.begin()));
}

}  // namespace

void append_head(std::string& out, const ResponseHead& head, const std::vector<HttpHeader>& headers) {
  auto to = std::back_inserter(out);
  fmt::format_to(to, "HTTP/1.1 {} {}\r\nDate: {}\r\nServer: manta\r\n", head.status, reason_phrase(head.status),
                 date_now());
  if (!head.content_type.empty()) fmt::format_to(to, "Content-Type: {}\r\n", head.content_type);
  if (head.content_length) fmt::format_to(to, "Content-Length: {}\r\n", *head.content_length);
  if (head.chunked) out += "Transfer-Encoding: chunked\r\n";
  if (!head.keep_alive) out += "Connection: close\r\n";
  for (const auto& header : headers) {
    fmt::format_to(to, "{}: {}\r\n", header.name, until_control_character(header.value));
  }
  out += "\r\n";
}

}  // namespace manta::api
