// What a client is told when something is wrong: {"error":{"message","type","param","code"}}.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "api/http/message.h"
#include "base/result.h"

namespace manta::api {

struct ApiError {
  int status = 400;
  std::string type = "BadRequestError";
  std::string message;
  std::string param;  // the field at fault; empty: null

  std::string json() const;
  HttpResponse response() const;
};
// Nothing, or what is wrong. Functions that check return it; the first problem ends a request.
using Problem = std::optional<ApiError>;

ApiError bad_value(std::string_view param, std::string message);  // a value outside its range
ApiError bad_shape(std::string_view param, std::string message);  // a value of the wrong type, or no JSON at all
ApiError not_found(std::string message);
ApiError not_implemented(std::string_view param, std::string message);
ApiError overloaded(std::string message);  // 503 with Retry-After
ApiError internal_error(std::string message);
// By the code's meaning (base/result.h).
ApiError from_error(const Error& error);

}  // namespace manta::api
