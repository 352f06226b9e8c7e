#include "model/hub_cache.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <fstream>
#include <system_error>

#include "model/file.h"
#include "model/weight_index.h"

namespace manta::model {

namespace fs = std::filesystem;

namespace {

constexpr size_t kMaxNameBytes = 96;
constexpr size_t kMaxRevisionBytes = 200;

bool is_name(std::string_view name) {
  return !name.empty() && name.size() <= kMaxNameBytes && name.front() != '.' && name.front() != '-' &&
         name.find("..") == std::string_view::npos && name.find("--") == std::string_view::npos &&
         std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return std::isalnum(c) || c == '-' || c == '_' || c == '.'; });
}

std::string find(const EnvMap& environment, std::string_view name) {
  const auto it = environment.find(name);
  return it == environment.end() ? "" : it->second;
}

Error failed(const fs::path& path, const char* what, const std::error_code& reason) {
  return error(ErrorCode::kUnavailable, fmt::format("{}: cannot be {}: {}", path.string(), what, reason.message()));
}

}  // namespace

bool is_hub_id(std::string_view text) {
  const size_t slash = text.find('/');
  if (slash == std::string_view::npos) return is_name(text);
  return is_name(text.substr(0, slash)) && is_name(text.substr(slash + 1));
}

bool is_commit(std::string_view revision) {
  return revision.size() == 40 &&
         std::all_of(revision.begin(), revision.end(), [](unsigned char c) { return std::isxdigit(c); });
}

bool is_revision(std::string_view revision) {  // refs/pr/1 is one, so slashes are allowed
  return !revision.empty() && revision.size() <= kMaxRevisionBytes && revision.front() != '/' &&
         revision.back() != '/' && revision.front() != '-' && revision.find("..") == std::string_view::npos &&
         revision.find("//") == std::string_view::npos &&
         std::all_of(revision.begin(), revision.end(), [](unsigned char c) {
           return std::isalnum(c) || c == '-' || c == '_' || c == '.' || c == '/' || c == '+';
         });
}

std::string hub_cache_folder(const std::string& download_dir, const EnvMap& environment) {
  if (!download_dir.empty()) return download_dir;
  if (const std::string cache = find(environment, "HF_HUB_CACHE"); !cache.empty()) return cache;
  if (const std::string home = find(environment, "HF_HOME"); !home.empty()) return (fs::path(home) / "hub").string();
  if (const std::string cache = find(environment, "XDG_CACHE_HOME"); !cache.empty()) {
    return (fs::path(cache) / "huggingface/hub").string();
  }
  const std::string home = find(environment, "HOME");
  return (fs::path(home.empty() ? "/" : home) / ".cache/huggingface/hub").string();
}

HubCache::HubCache(const std::string& cache, const std::string& model) {
  std::string name = model;
  if (const size_t slash = name.find('/'); slash != std::string::npos) name.replace(slash, 1, "--");
  repo_ = fs::path(cache) / ("models--" + name);
}

std::optional<std::string> HubCache::commit_of(const std::string& revision) const {
  std::error_code ignored;
  if (is_commit(revision))
    return fs::is_directory(snapshot(revision), ignored) ? std::optional(revision) : std::nullopt;
  auto text = read_small_file((repo_ / "refs" / revision).string(), 256);
  if (!text.ok()) return {};
  while (!text->empty() && std::isspace(static_cast<unsigned char>(text->back()))) text->pop_back();
  return is_commit(*text) ? std::optional(*text) : std::nullopt;
}

Status HubCache::write_ref(const std::string& revision, const std::string& commit) const {
  if (is_commit(revision)) return {};
  const fs::path path = repo_ / "refs" / revision;
  std::error_code reason;
  fs::create_directories(path.parent_path(), reason);
  std::ofstream(path, std::ios::binary | std::ios::trunc) << commit;
  const auto written = read_small_file(path.string(), 256);
  if (!written.ok() || *written != commit) return error(ErrorCode::kUnavailable, path.string() + ": cannot be written");
  return {};
}

Status HubCache::link(const std::string& commit, const std::string& file, const std::string& etag) const {
  const fs::path path = snapshot(commit) / file;
  std::error_code reason;
  fs::create_directories(path.parent_path(), reason);
  fs::remove(path, reason);
  fs::create_symlink(fs::path("../../blobs") / etag, path, reason);
  return reason ? Status(failed(path, "made", reason)) : Status();
}

std::string missing_file(const fs::path& folder) {
  std::error_code ignored;
  const auto exists = [&](const std::string& name) { return fs::is_regular_file(folder / name, ignored); };
  for (const char* name : {"config.json", "tokenizer.json"}) {
    if (!exists(name)) return name;
  }
  if (!exists("model.safetensors.index.json")) {
    return exists("model.safetensors") ? "" : "model.safetensors or its index";
  }
  const auto index = load_weight_index(folder.string());
  if (!index.ok()) return "a model.safetensors.index.json that can be read";
  for (const std::string& file : index->files) {
    if (!exists(file)) return file;
  }
  return "";
}

Result<RepoLock> RepoLock::take(const fs::path& repo) {
  std::error_code reason;
  fs::create_directories(repo, reason);
  if (reason) return failed(repo, "made", reason);
  const fs::path path = repo / ".manta.lock";
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return failed(path, "opened", {errno, std::generic_category()});
  int locked = -1;
  do {
    locked = flock(fd, LOCK_EX);
  } while (locked != 0 && errno == EINTR);
  if (locked == 0) return RepoLock(fd);
  const std::error_code why(errno, std::generic_category());
  close(fd);
  return failed(path, "locked", why);
}

RepoLock::~RepoLock() {
  if (fd_ >= 0) close(fd_);  // gives the lock back
}

}  // namespace manta::model
