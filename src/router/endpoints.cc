#include "router/endpoints.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <boost/asio/steady_timer.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <tuple>
#include <utility>

#include "base/log.h"

namespace manta::router {
namespace {

constexpr std::chrono::milliseconds kPeriod{500};

using Stamp = std::tuple<ino_t, off_t, time_t, long>;

Stamp stamp_of(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return {};
  return {info.st_ino, info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec};
}

Status read_list(const nlohmann::json& file, const char* key, const std::string& path, std::vector<std::string>& out) {
  const auto found = file.find(key);
  if (found == file.end()) return {};
  const auto bad = [&] {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("{}: {}: must be a list of addresses, unix:@name or tcp:host:port", path, key));
  };
  if (!found->is_array()) return bad();
  for (const auto& address : *found) {
    if (!address.is_string()) return bad();
    const auto& text = address.get_ref<const std::string&>();
    if (!text.starts_with("unix:") && !text.starts_with("tcp:")) return bad();
    out.push_back(text);
  }
  return {};
}

}  // namespace

Result<Endpoints> read_endpoints(const std::string& path) {
  std::ifstream in(path);
  if (!in) return error(ErrorCode::kNotFound, fmt::format("endpoints {}: cannot be read", path));
  std::stringstream text;
  text << in.rdbuf();
  const auto file = nlohmann::json::parse(text.str(), nullptr, /*allow_exceptions=*/false);
  if (!file.is_object()) return error(ErrorCode::kInvalidArgument, fmt::format("{}: is no JSON object", path));
  for (const auto& [key, value] : file.items()) {
    if (key == "prefill" || key == "decode" || key == "mixed") continue;
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("{}: unknown key {}; there are prefill, decode and mixed", path, key));
  }
  if (file.contains("mixed") == file.contains("decode")) {
    return error(ErrorCode::kInvalidArgument, fmt::format("{}: give either decode or mixed", path));
  }
  Endpoints out;
  MANTA_TRY(read_list(file, "prefill", path, out.prefill));
  MANTA_TRY(read_list(file, "decode", path, out.decode));
  MANTA_TRY(read_list(file, "mixed", path, out.decode));
  return out;
}

struct EndpointsWatch::State : std::enable_shared_from_this<State> {
  State(boost::asio::io_context& io, std::string p, std::function<void(const Endpoints&)> f)
      : timer(io), path(std::move(p)), on_change(std::move(f)), seen(stamp_of(path)) {}

  void arm() {
    timer.expires_after(kPeriod);
    timer.async_wait([self = shared_from_this()](boost::system::error_code ec) {
      if (ec || !self->on_change) return;
      self->look();
      self->arm();
    });
  }

  void look() {
    const Stamp now = stamp_of(path);
    if (std::exchange(seen, now) == now) return;
    const auto endpoints = read_endpoints(path);
    if (endpoints.ok()) return on_change(*endpoints);
    spdlog::warn("{}; going on with what it said before", endpoints.error().message);
  }

  boost::asio::steady_timer timer;
  std::string path;
  std::function<void(const Endpoints&)> on_change;
  Stamp seen;
};

EndpointsWatch::EndpointsWatch(boost::asio::io_context& io, std::string path,
                               std::function<void(const Endpoints&)> on_change)
    : state_(std::make_shared<State>(io, std::move(path), std::move(on_change))) {
  state_->arm();
}

EndpointsWatch::~EndpointsWatch() {
  state_->on_change = nullptr;
  state_->timer.cancel();
}

}  // namespace manta::router
