// MODEL on the command line: a folder, or a Hub id that is looked up in the Hugging Face cache and else downloaded.
#pragma once

#include <chrono>
#include <string>

#include "base/result.h"
#include "model/progress.h"

namespace manta::model {

struct HubOptions {
  std::string cache;  // hub_cache_folder(); made when it is needed
  std::string endpoint = "https://huggingface.co";
  std::string token;                            // empty: none
  std::string revision = "main";                // branch, tag or commit
  bool offline = false;                         // only the cache
  ProgressFn progress;                          // of all files together; may be empty
  int max_attempts = 5;                         // per file; each goes on where the last one broke off
  std::chrono::milliseconds retry_delay{1000};  // before the second retry, doubled for each after it
};

// The folder to load from. A cached revision is used without asking the network. A download goes on where an earlier
// one stopped; every file's size and hash (SHA-256 of large files, git's of the others) is checked before it is used.
// kInvalidArgument: neither a folder nor an id. kUnavailable: not cached and not to be had; one line says what to
// fetch. kNotFound: the Hub has no such model or revision. kDataLoss: what came is not what was asked for.
Result<std::string> resolve_model(const std::string& model, const HubOptions& options);

}  // namespace manta::model
