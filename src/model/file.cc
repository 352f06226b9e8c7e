#include "model/file.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <iterator>

namespace manta::model {

Result<std::string> read_small_file(const std::string& path, size_t max_bytes) {
  std::error_code failed;
  const auto kind = std::filesystem::status(path, failed).type();
  if (kind == std::filesystem::file_type::not_found)
    return error(ErrorCode::kNotFound, path + ": there is no such file");
  if (kind != std::filesystem::file_type::regular) return error(ErrorCode::kUnavailable, path + ": is not a file");
  const auto num_bytes = std::filesystem::file_size(path, failed);
  if (!failed && num_bytes > max_bytes) {
    return error(ErrorCode::kInvalidArgument, fmt::format("{}: {} bytes, at most {}", path, num_bytes, max_bytes));
  }
  std::ifstream stream(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(stream), {}};
  if (!stream) return error(ErrorCode::kUnavailable, path + ": cannot be read");
  return text;
}

}  // namespace manta::model
