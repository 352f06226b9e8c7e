#include "model/hub_download.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include "model/digest.h"

namespace manta::model {

namespace fs = std::filesystem;

namespace {

constexpr auto kReportEvery = std::chrono::milliseconds(200);
constexpr size_t kReadBytes = 1 << 20;

Error no_write(const fs::path& path) {
  return error(ErrorCode::kUnavailable,
               fmt::format("{}: cannot be written: {}", path.string(), std::generic_category().message(errno)));
}

// The bytes of one file so far, and their hash.
class PartialFile {
 public:
  static Result<PartialFile> open(const fs::path& path, const HubFile& file);
  ~PartialFile() {
    if (fd_ >= 0) close(fd_);
  }
  PartialFile(PartialFile&& other) noexcept
      : path_(std::move(other.path_)),
        file_(other.file_),
        fd_(other.fd_),
        digest_(std::move(other.digest_)),
        num_bytes_(other.num_bytes_) {
    other.fd_ = -1;
  }

  uint64_t num_bytes() const { return num_bytes_; }
  Status append(std::string_view bytes);
  Status restart();
  Status check();                         // size and hash
  Status move_to(const fs::path& place);  // after check()

 private:
  PartialFile(fs::path path, const HubFile& file, int fd)
      : path_(std::move(path)), file_(file), fd_(fd), digest_(new_digest(file)) {}
  static Digest new_digest(const HubFile& file) {
    return file.sha256.empty() ? Digest::git_blob(file.num_bytes) : Digest::sha256();
  }
  Status read_existing();

  fs::path path_;
  const HubFile& file_;
  int fd_;
  Digest digest_;
  uint64_t num_bytes_ = 0;
};

Result<PartialFile> PartialFile::open(const fs::path& path, const HubFile& file) {
  std::error_code reason;
  fs::create_directories(path.parent_path(), reason);
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return no_write(path);
  PartialFile partial(path, file, fd);
  MANTA_TRY(partial.read_existing());
  return partial;
}

Status PartialFile::read_existing() {
  std::vector<char> piece(kReadBytes);
  for (;;) {
    const ssize_t n = read(fd_, piece.data(), piece.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    digest_.add({piece.data(), static_cast<size_t>(n)});
    num_bytes_ += static_cast<uint64_t>(n);
  }
  // More than the whole file: left over from something else.
  return num_bytes_ > file_.num_bytes ? restart() : Status();
}

Status PartialFile::append(std::string_view bytes) {
  if (bytes.size() > file_.num_bytes - num_bytes_) {
    return error(ErrorCode::kDataLoss,
                 fmt::format("{}: more than the {} bytes the Hub's list says", file_.name, file_.num_bytes));
  }
  digest_.add(bytes);
  num_bytes_ += bytes.size();
  while (!bytes.empty()) {
    const ssize_t n = write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return no_write(path_);
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return {};
}

Status PartialFile::restart() {
  if (ftruncate(fd_, 0) != 0 || lseek(fd_, 0, SEEK_SET) != 0) return no_write(path_);
  digest_ = new_digest(file_);
  num_bytes_ = 0;
  return {};
}

Status PartialFile::check() {
  if (num_bytes_ != file_.num_bytes) {
    return error(ErrorCode::kUnavailable,
                 fmt::format("{}: {} of {} bytes came", file_.name, num_bytes_, file_.num_bytes));
  }
  const std::string hash = digest_.hex();
  if (hash == file_.etag()) return {};
  MANTA_TRY(restart());
  return error(ErrorCode::kDataLoss,
               fmt::format("{}: its hash is {}, the Hub's list says {}", file_.name, hash, file_.etag()));
}

Status PartialFile::move_to(const fs::path& place) {
  std::error_code reason;
  if (fsync(fd_) != 0) return no_write(path_);
  fs::rename(path_, place, reason);
  if (!reason) return {};
  return error(ErrorCode::kUnavailable, fmt::format("{}: cannot be made: {}", place.string(), reason.message()));
}

// One request for what is still missing.
Status fetch_rest(const std::string& url, const HubFile& file, const HubOptions& options, PartialFile& partial,
                  DownloadProgress& progress) {
  HttpGet get;
  get.url = url;
  get.first_byte = partial.num_bytes();
  if (!options.token.empty()) get.authorization = "Bearer " + options.token;
  const auto on_head = [&](const HttpHead& head) -> Status {
    if (head.status == 206 && get.first_byte > 0) {
      const auto range = head.headers.find("content-range");
      const std::string expected = fmt::format("bytes {}-", get.first_byte);
      if (range != head.headers.end() && range->second.rfind(expected, 0) == 0) return {};
      return error(ErrorCode::kUnavailable, fmt::format("{}: another range came than was asked for", file.name));
    }
    if (head.status != 200) return error(ErrorCode::kUnavailable, fmt::format("{}: answer {}", file.name, head.status));
    progress.add(-static_cast<int64_t>(partial.num_bytes()));  // the server begins at the first byte
    return partial.restart();
  };
  return http_get(get, on_head, [&](std::string_view bytes) -> Status {
    MANTA_TRY(partial.append(bytes));
    progress.add(static_cast<int64_t>(bytes.size()));
    return {};
  });
}

}  // namespace

DownloadProgress::DownloadProgress(const HubListing& listing, const ProgressFn& report) : report_(report) {
  for (const HubFile& file : listing.files) total_ += file.num_bytes;
}

void DownloadProgress::add(int64_t bytes) {
  done_ += bytes;
  if (Clock::now() - said_ >= kReportEvery) say(false);
}

void DownloadProgress::finish() {
  say(true);
}

void DownloadProgress::say(bool finished) {
  said_ = Clock::now();
  const std::chrono::duration<double> seconds = said_ - begin_;
  if (report_) report_({static_cast<size_t>(std::max<int64_t>(done_, 0)), total_, seconds.count(), finished});
}

Status download_file(const std::string& url, const HubFile& file, const fs::path& blob, const HubOptions& options,
                     DownloadProgress& progress) {
  std::error_code unknown;
  if (fs::is_regular_file(blob, unknown) && fs::file_size(blob, unknown) == file.num_bytes) {
    progress.add(static_cast<int64_t>(file.num_bytes));
    return {};
  }
  MANTA_ASSIGN(PartialFile partial, PartialFile::open(blob.string() + ".incomplete", file));
  progress.add(static_cast<int64_t>(partial.num_bytes()));
  std::optional<Error> last;
  auto delay = options.retry_delay;
  for (int attempt = 0; attempt < std::max(options.max_attempts, 1); ++attempt) {
    if (attempt > 1) {
      std::this_thread::sleep_for(delay);
      delay *= 2;
    }
    if (partial.num_bytes() < file.num_bytes) {
      const Status fetched = fetch_rest(url, file, options, partial, progress);
      if (!fetched.ok() && fetched.error().code != ErrorCode::kUnavailable) return fetched;
      if (!fetched.ok()) last = fetched.error();
      if (!fetched.ok() && partial.num_bytes() < file.num_bytes) continue;
    }
    const uint64_t before = partial.num_bytes();
    const Status checked = partial.check();
    if (checked.ok()) return partial.move_to(blob);
    progress.add(static_cast<int64_t>(partial.num_bytes()) - static_cast<int64_t>(before));
    last = checked.error();
  }
  return error(last->code, fmt::format("{} (tried {} times; what came is kept and the next start goes on from there)",
                                       last->message, options.max_attempts));
}

}  // namespace manta::model
