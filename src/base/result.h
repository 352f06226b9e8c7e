// Errors as values. Result<T> is a T or an Error; Status is "fine" or an Error. Both must be looked at.
// Where used: exceptions may leave start-up and config code only; on the request path a Result ends one request,
// never the engine. Messages carry the value and the bound: "block_size 48: must be a multiple of 64 (MLA tile)".
#pragma once

#include <cassert>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace manta {

enum class ErrorCode {
  kInvalidArgument,     // the caller's input is wrong; HTTP 400
  kNotFound,            // a named thing does not exist; HTTP 404
  kResourceExhausted,   // a bound was reached, try later; HTTP 503
  kUnavailable,         // a peer is gone or not ready yet; HTTP 503
  kDeadlineExceeded,    // waited as long as was allowed
  kAborted,             // ended on request (client gone, epoch over)
  kFailedPrecondition,  // the system is not in a state for this
  kUnimplemented,       // known, and not done here; HTTP 501
  kDataLoss,            // bytes are truncated, corrupt or of another version
  kInternal,            // a bug of ours
};

const char* to_string(ErrorCode code);

struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;
};

inline Error error(ErrorCode code, std::string message) {
  return {code, std::move(message)};
}

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Error e) : error_(std::move(e)) {}  // NOLINT: implicit on purpose, so `return error(...)` works
  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const {
    assert(!ok());
    return *error_;
  }

 private:
  std::optional<Error> error_;
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : data_(std::in_place_index<0>, std::move(value)) {}  // NOLINT: implicit on purpose
  Result(Error e) : data_(std::in_place_index<1>, std::move(e)) {}      // NOLINT: implicit on purpose
  bool ok() const { return data_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  T& value() & {
    assert(ok());
    return std::get<0>(data_);
  }
  const T& value() const& {
    assert(ok());
    return std::get<0>(data_);
  }
  T&& value() && {
    assert(ok());
    return std::get<0>(std::move(data_));
  }
  const Error& error() const {
    assert(!ok());
    return std::get<1>(data_);
  }

 private:
  std::variant<T, Error> data_;
};

}  // namespace manta

// MANTA_TRY(expr): returns the error of a Status or Result to the caller.
#define MANTA_TRY(expr)                                                        \
  do {                                                                         \
    if (auto manta_try_ = (expr); !manta_try_.ok()) return manta_try_.error(); \
  } while (false)
// MANTA_ASSIGN(auto x, expr): x = value of the Result, or return its error.
#define MANTA_CONCAT_INNER(a, b) a##b
#define MANTA_CONCAT(a, b) MANTA_CONCAT_INNER(a, b)
#define MANTA_ASSIGN(lhs, expr) MANTA_ASSIGN_INNER(MANTA_CONCAT(manta_result_, __LINE__), lhs, expr)
#define MANTA_ASSIGN_INNER(tmp, lhs, expr) \
  auto tmp = (expr);                       \
  if (!tmp.ok()) return tmp.error();       \
  lhs = std::move(tmp).value()
