#include "api/openai/request_id.h"

#include <fmt/format.h>

#include <charconv>

namespace manta::api {
namespace {

constexpr size_t kMaxIdBytes = 256;

}  // namespace

std::string random_id(std::mt19937_64& random) {
  const uint64_t high = random();
  return fmt::format("{:016x}{:016x}", high, random());
}

std::string request_id(const LoopContext& context, const HttpRequest& request, std::string_view prefix,
                       const std::string& from_body) {
  std::string_view suffix = request.header("X-Request-Id");
  if (suffix.empty()) suffix = from_body;
  if (suffix.empty()) return fmt::format("{}{}", prefix, random_id(context.ids));
  return fmt::format("{}{}", prefix, suffix.substr(0, kMaxIdBytes));
}

std::optional<int> data_parallel_rank(const HttpRequest& request) {
  const std::string_view text = request.header("X-data-parallel-rank");
  int rank = 0;
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), rank);
  if (text.empty() || ec != std::errc{} || end != text.data() + text.size()) return {};
  return rank;
}

}  // namespace manta::api
