#include "api/openai/api_error.h"

#include <utility>

#include "api/openai/json_writer.h"

namespace manta::api {

std::string ApiError::json() const {
  std::string out;
  JsonWriter writer(out);
  writer.begin_object().key("error").begin_object();
  writer.key("message").string(message).key("type").string(type).key("param");
  if (param.empty()) {
    writer.null();
  } else {
    writer.string(param);
  }
  writer.key("code").number(int64_t{status}).end_object().end_object();
  return out;
}

HttpResponse ApiError::response() const {
  HttpResponse response{.status = status, .body = json()};
  if (status == 503) response.headers.push_back({"Retry-After", "1"});
  return response;
}

ApiError bad_value(std::string_view param, std::string message) {
  return {.message = std::move(message), .param = std::string(param)};
}
ApiError bad_shape(std::string_view param, std::string message) {
  return {.type = "Bad Request", .message = std::move(message), .param = std::string(param)};
}
ApiError not_found(std::string message) {
  return {.status = 404, .type = "NotFoundError", .message = std::move(message)};
}
ApiError not_implemented(std::string_view param, std::string message) {
  return {.status = 501, .type = "NotImplementedError", .message = std::move(message), .param = std::string(param)};
}
ApiError overloaded(std::string message) {
  return {.status = 503, .type = "ServiceUnavailableError", .message = std::move(message)};
}
ApiError internal_error(std::string message) {
  return {.status = 500, .type = "InternalServerError", .message = std::move(message)};
}

ApiError from_error(const Error& error) {
  switch (error.code) {
    case ErrorCode::kInvalidArgument: return bad_value("", error.message);
    case ErrorCode::kNotFound: return not_found(error.message);
    case ErrorCode::kUnimplemented: return not_implemented("", error.message);
    case ErrorCode::kResourceExhausted:
    case ErrorCode::kUnavailable: return overloaded(error.message);
    case ErrorCode::kDeadlineExceeded:
    case ErrorCode::kAborted:
    case ErrorCode::kFailedPrecondition:
    case ErrorCode::kDataLoss:
    case ErrorCode::kInternal: break;
  }
  return internal_error(error.message);
}

}  // namespace manta::api
