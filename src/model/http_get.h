// GET over HTTP or HTTPS: redirects, ranges, time limits. What the Hub client needs and no more.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "base/result.h"

namespace manta::model {

struct HttpGet {
  std::string url;                   // http:// or https://
  std::string authorization;         // "Bearer ..." or empty; not sent to another host than the url's
  uint64_t first_byte = 0;           // > 0: asks for the rest of the resource from here
  std::chrono::seconds timeout{30};  // without a byte
};

struct HttpHead {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
};

// Called once, before the body of the answer that is no redirect. An error ends the request.
using HttpHeadFn = std::function<Status(const HttpHead& head)>;
// Called for each piece of the body.
using HttpBodyFn = std::function<Status(std::string_view bytes)>;

// kUnavailable: no connection, a broken one, a certificate that does not hold; the message names the host and why.
// Any status of the server is a success here.
Status http_get(const HttpGet& get, const HttpHeadFn& on_head, const HttpBodyFn& on_body);

}  // namespace manta::model
