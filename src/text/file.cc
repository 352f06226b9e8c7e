#include "text/file.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

namespace manta::text {

Result<std::string> read_file(const std::string& path) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (file == nullptr) {
    return error(errno == ENOENT ? ErrorCode::kNotFound : ErrorCode::kUnavailable,
                 fmt::format("{}: {}", path, std::strerror(errno)));
  }
  std::string content;
  char buffer[1 << 16];
  while (const size_t count = std::fread(buffer, 1, sizeof(buffer), file.get())) content.append(buffer, count);
  if (std::ferror(file.get()) != 0) {
    return error(ErrorCode::kUnavailable, fmt::format("{}: {}", path, std::strerror(errno)));
  }
  return content;
}

}  // namespace manta::text
