// Which prefill ranks a decode rank can pull cache rows from, by what both say of their connectors.
#pragma once

#include <map>
#include <string>

namespace manta::router {

class KvPeers {
 public:
  // Decode's half of an early pull: a JSON object of kv_transfer_params. Empty: one of them has no connector that
  // pulls, or their caches do not fit, which is logged once with the key that differs. Arguments:
  // RankView::kv_transfer.
  const std::string& pull_params(const std::string& prefill, const std::string& decode);

 private:
  std::map<std::string, std::map<std::string, std::string, std::less<>>, std::less<>> known_;  // by prefill, by decode
  size_t num_known_ = 0;
};

}  // namespace manta::router
