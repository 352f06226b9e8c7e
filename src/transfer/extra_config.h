// kv_connector_extra_config: each connector reads its own keys, with bounds; what nobody has read is an error that
// names it and says which keys there are.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"

namespace manta::transfer {

class ExtraConfig {
 public:
  static Result<ExtraConfig> parse(const std::string& connector, const std::string& text);  // empty text: no keys
  ~ExtraConfig();
  ExtraConfig(ExtraConfig&&) noexcept;

  Result<double> number(const char* key, double by_default, double least, double most);
  Result<bool> boolean(const char* key, bool by_default);
  Result<std::vector<std::string>> strings(const char* key, std::vector<std::string> by_default);
  Result<std::vector<std::string>> objects(const char* key);  // the JSON text of each
  Status check_all_read() const;

 private:
  struct State;
  explicit ExtraConfig(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// What the connectors that pull have in common.
struct LeaseKeys {
  std::chrono::milliseconds lease;
  std::chrono::milliseconds rendezvous;
};
Result<LeaseKeys> read_lease_keys(ExtraConfig& extra);

}  // namespace manta::transfer
