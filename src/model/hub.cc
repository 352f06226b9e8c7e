#include "model/hub.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>

#include "model/hub_cache.h"
#include "model/hub_download.h"
#include "model/hub_listing.h"

namespace manta::model {

namespace fs = std::filesystem;

namespace {

constexpr size_t kMaxListingBytes = 64u << 20;

// One line that says what to do where there is a network.
Error not_to_be_had(const std::string& model, const HubOptions& options, const std::string& why) {
  const std::string revision = options.revision == "main" ? "" : " --revision " + options.revision;
  return error(ErrorCode::kUnavailable,
               fmt::format("{} is not in {} and {}; fetch it with: huggingface-cli download {}{} --cache-dir {}", model,
                           options.cache, why, model, revision, options.cache));
}

Error refused(const std::string& model, const HubOptions& options, int status) {
  if (status == 401 || status == 403) {
    return error(ErrorCode::kFailedPrecondition,
                 fmt::format("{}: {} answers {}: {}", model, options.endpoint, status,
                             options.token.empty() ? "it is gated or private, set HF_TOKEN"
                                                   : "this HF_TOKEN may not read it (are its terms accepted?)"));
  }
  if (status == 404) {
    return error(ErrorCode::kNotFound, fmt::format("{}: {} has no such model, or no revision '{}' of it", model,
                                                   options.endpoint, options.revision));
  }
  return error(ErrorCode::kUnavailable, fmt::format("{}: {} answers {}", model, options.endpoint, status));
}

// Slashes of a revision (refs/pr/1) are part of one path segment.
std::string escaped(std::string revision) {
  for (size_t at = 0; (at = revision.find('/', at)) != std::string::npos; at += 3) revision.replace(at, 1, "%2F");
  return revision;
}

Result<HubListing> fetch_listing(const std::string& model, const HubOptions& options) {
  HttpGet get;
  get.url = fmt::format("{}/api/models/{}/revision/{}?blobs=true", options.endpoint, model, escaped(options.revision));
  if (!options.token.empty()) get.authorization = "Bearer " + options.token;
  std::string body;
  const Status status = http_get(
      get, [&](const HttpHead& head) { return head.status == 200 ? Status() : refused(model, options, head.status); },
      [&](std::string_view bytes) -> Status {
        body += bytes;
        if (body.size() <= kMaxListingBytes) return {};
        return error(ErrorCode::kDataLoss,
                     fmt::format("the Hub's list of files: more than {} bytes", kMaxListingBytes));
      });
  MANTA_TRY(status);
  return parse_hub_listing(body);
}

Status check_space(const HubCache& cache, const HubListing& listing) {
  uint64_t needed = 0;
  std::error_code unknown;
  for (const HubFile& file : listing.files) {
    if (!fs::exists(cache.blob(file.etag()), unknown)) needed += file.num_bytes;
  }
  const auto space = fs::space(cache.repo(), unknown);
  if (unknown || needed <= space.available) return {};
  return error(
      ErrorCode::kResourceExhausted,
      fmt::format("{}: {:.1f} GB are to be downloaded and {:.1f} GB are free; --download-dir names another place",
                  cache.repo().string(), static_cast<double>(needed) / 1e9,
                  static_cast<double>(space.available) / 1e9));
}

Result<std::string> download(const std::string& model, const HubOptions& options, const HubCache& cache) {
  auto listing = fetch_listing(model, options);
  if (!listing.ok()) {
    const bool unreachable = listing.error().code == ErrorCode::kUnavailable;
    return unreachable ? not_to_be_had(model, options, listing.error().message) : listing.error();
  }
  MANTA_TRY(check_space(cache, *listing));
  DownloadProgress progress(*listing, options.progress);
  for (const HubFile& file : listing->files) {
    const std::string url = fmt::format("{}/{}/resolve/{}/{}", options.endpoint, model, listing->commit, file.name);
    MANTA_TRY(download_file(url, file, cache.blob(file.etag()), options, progress));
    MANTA_TRY(cache.link(listing->commit, file.name, file.etag()));
  }
  progress.finish();
  const fs::path folder = cache.snapshot(listing->commit);
  if (const std::string missing = missing_file(folder); !missing.empty()) {
    return error(ErrorCode::kNotFound, fmt::format("{}: the repository has no {}", model, missing));
  }
  MANTA_TRY(cache.write_ref(options.revision, listing->commit));
  return folder.string();
}

// The folder, or empty and why not.
std::string cached_folder(const HubCache& cache, const std::string& revision, std::string* why) {
  const auto commit = cache.commit_of(revision);
  if (!commit) return "";
  const std::string missing = missing_file(cache.snapshot(*commit));
  if (missing.empty()) return cache.snapshot(*commit).string();
  *why = fmt::format(" completely ({} is missing)", missing);
  return "";
}

}  // namespace

Result<std::string> resolve_model(const std::string& model, const HubOptions& given) {
  std::error_code ignored;
  if (fs::is_directory(model, ignored)) return model;
  if (!is_hub_id(model)) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("model '{}': is neither a folder nor a Hub id such as deepseek-ai/DeepSeek-V3-0324",
                             model.substr(0, 200)));
  }
  HubOptions options = given;
  while (!options.endpoint.empty() && options.endpoint.back() == '/') options.endpoint.pop_back();
  if (!is_revision(options.revision)) {
    return error(ErrorCode::kInvalidArgument,
                 fmt::format("revision '{}': is no branch, tag or commit", options.revision.substr(0, 200)));
  }
  const HubCache cache(options.cache, model);
  std::string why;
  std::string folder = cached_folder(cache, options.revision, &why);
  if (!folder.empty()) return folder;
  if (options.offline) return not_to_be_had(model, options, "HF_HUB_OFFLINE is set" + (why.empty() ? "" : "," + why));
  MANTA_ASSIGN(const RepoLock lock, RepoLock::take(cache.repo()));
  folder = cached_folder(cache, options.revision, &why);  // another process may have fetched it meanwhile
  if (!folder.empty()) return folder;
  return download(model, options, cache);
}

}  // namespace manta::model
