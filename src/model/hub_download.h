// One file of a Hub repository into the cache: resumed, checked, then moved to its place.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>

#include "base/result.h"
#include "model/http_get.h"
#include "model/hub.h"
#include "model/hub_listing.h"

namespace manta::model {

// Adds up the bytes of all files of a listing and reports them a few times a second.
class DownloadProgress {
 public:
  DownloadProgress(const HubListing& listing, const ProgressFn& report);
  void add(int64_t bytes);  // negative: those have to come again
  void finish();

 private:
  void say(bool finished);

  using Clock = std::chrono::steady_clock;
  const ProgressFn& report_;
  uint64_t total_ = 0;
  int64_t done_ = 0;
  Clock::time_point begin_ = Clock::now();
  Clock::time_point said_ = begin_;
};

// `blob` is the file's place in the cache; nothing is done when it is there already. Bytes that came so far are kept
// beside it as <blob>.incomplete.
Status download_file(const std::string& url, const HubFile& file, const std::filesystem::path& blob,
                     const HubOptions& options, DownloadProgress& progress);

}  // namespace manta::model
