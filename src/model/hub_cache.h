// The Hugging Face cache on disk, shared with Python's huggingface_hub:
//   <cache>/models--ORG--NAME/refs/<revision>            commit of a branch or tag
//                             /blobs/<etag>              a file's bytes; <etag>.incomplete while they come
//                             /snapshots/<commit>/<file> link into blobs/
// Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "base/env.h"
#include "base/result.h"

namespace manta::model {

// "ORG/NAME" or "NAME", of the characters the Hub allows.
bool is_hub_id(std::string_view text);
bool is_commit(std::string_view revision);  // 40 hexadecimal digits
// A branch, tag or commit that is also a safe file name below refs/.
bool is_revision(std::string_view revision);

// download_dir, else HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub.
std::string hub_cache_folder(const std::string& download_dir, const EnvMap& environment);

class HubCache {
 public:
  HubCache(const std::string& cache, const std::string& model);  // model: a Hub id

  const std::filesystem::path& repo() const { return repo_; }
  std::filesystem::path blob(const std::string& etag) const { return repo_ / "blobs" / etag; }
  std::filesystem::path snapshot(const std::string& commit) const { return repo_ / "snapshots" / commit; }

  // The commit a revision stands for, as far as this cache knows.
  std::optional<std::string> commit_of(const std::string& revision) const;
  Status write_ref(const std::string& revision, const std::string& commit) const;
  // snapshots/<commit>/<file> -> blobs/<etag>
  Status link(const std::string& commit, const std::string& file, const std::string& etag) const;

 private:
  std::filesystem::path repo_;
};

// Empty when the folder holds a model that can be served; else the first thing that is missing.
std::string missing_file(const std::filesystem::path& folder);

// Held while one process downloads a model; others wait for it and then find the files.
class RepoLock {
 public:
  static Result<RepoLock> take(const std::filesystem::path& repo);  // waits
  ~RepoLock();
  RepoLock(RepoLock&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  RepoLock& operator=(RepoLock&&) = delete;

 private:
  explicit RepoLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace manta::model
