// msgpack with limits, for the .cc files that define wire messages. Never include this from a header: it is heavy.
#pragma once

#include <fmt/format.h>

#ifndef MSGPACK_NO_BOOST
#define MSGPACK_NO_BOOST
#endif
#include <msgpack.hpp>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "base/result.h"

namespace manta {

// A message is a struct with, in its own namespace,  auto fields(T& t) { return std::tie(t.a, t.b); }
// It travels as an array of exactly those fields. Enums need  constexpr E last_value(E) { return E::kLast; } .
template <typename T>
concept HasFields = requires(T& t) {
  fields(t);
};
template <typename T>
concept BoundedEnum = std::is_enum_v<T> && requires(T t) {
  last_value(t);
};

}  // namespace manta

namespace msgpack {
MSGPACK_API_VERSION_NAMESPACE(MSGPACK_DEFAULT_API_NS) {
  namespace adaptor {

  template <manta::HasFields T>
  struct pack<T> {
    template <typename Stream>
    msgpack::packer<Stream>& operator()(msgpack::packer<Stream>& out, const T& message) const {
      std::apply(
          [&out](const auto&... field) {
            out.pack_array(sizeof...(field));
            (out.pack(field), ...);
          },
          fields(const_cast<T&>(message)));
      return out;
    }
  };

  template <manta::HasFields T>
  struct convert<T> {
    const msgpack::object& operator()(const msgpack::object& in, T& message) const {
      std::apply(
          [&in](auto&... field) {
            if (in.type != msgpack::type::ARRAY || in.via.array.size != sizeof...(field)) throw msgpack::type_error();
            const msgpack::object* item = in.via.array.ptr;
            ((item++)->convert(field), ...);
          },
          fields(message));
      return in;
    }
  };

  template <manta::BoundedEnum T>
  struct pack<T> {
    template <typename Stream>
    msgpack::packer<Stream>& operator()(msgpack::packer<Stream>& out, const T& value) const {
      return out.pack(static_cast<uint8_t>(value));
    }
  };

  template <manta::BoundedEnum T>
  struct convert<T> {
    const msgpack::object& operator()(const msgpack::object& in, T& value) const {
      const auto raw = in.as<uint8_t>();
      if (raw > static_cast<uint8_t>(last_value(T{}))) throw msgpack::type_error();
      value = static_cast<T>(raw);
      return in;
    }
  };

  }  // namespace adaptor
}
}  // namespace msgpack

namespace manta {

template <typename T>
std::string pack_message(const T& message) {
  msgpack::sbuffer buffer;
  msgpack::pack(buffer, message);
  return {buffer.data(), buffer.size()};
}

// kDataLoss for bytes that are no such message. Sizes are bounded by what the payload could hold at all, so a short
// hostile payload cannot ask for gigabytes; nesting by what our messages need.
template <typename T>
Result<T> unpack_message(std::string_view payload, const char* what) {
  const size_t n = payload.size();
  const msgpack::unpack_limit limit(n, n, n, n, n, /*depth=*/12);
  try {
    size_t offset = 0;
    const msgpack::object_handle handle = msgpack::unpack(payload.data(), n, offset, nullptr, nullptr, limit);
    if (offset != n) {
      return error(ErrorCode::kDataLoss, fmt::format("{} message: {} bytes left over", what, n - offset));
    }
    T message;
    handle.get().convert(message);
    return message;
  } catch (const std::exception& e) {
    return error(ErrorCode::kDataLoss, fmt::format("{} message of {} bytes: {}", what, n, e.what()));
  }
}

// Messages written one behind the other, each handed to take as it is read. Their std::string_views point into payload.
template <typename T, typename Take>
Status unpack_each(std::string_view payload, const char* what, Take&& take) {
  const size_t n = payload.size();
  const msgpack::unpack_limit limit(n, n, n, n, n, /*depth=*/12);
  const auto refer = [](msgpack::type::object_type, std::size_t, void*) { return true; };
  try {
    for (size_t offset = 0; offset < n;) {
      const msgpack::object_handle handle = msgpack::unpack(payload.data(), n, offset, refer, nullptr, limit);
      T message;
      handle.get().convert(message);
      take(std::move(message));
    }
    return {};
  } catch (const std::exception& e) {
    return error(ErrorCode::kDataLoss, fmt::format("{} messages of {} bytes: {}", what, n, e.what()));
  }
}

}  // namespace manta
