#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace manta::model {

// A hash over bytes as they come.
class Digest {
 public:
  static Digest sha256();
  static Digest git_blob(uint64_t num_bytes);  // SHA-1 of "blob <num_bytes>\0" and the bytes, as git names files
  ~Digest();
  Digest(Digest&&) noexcept;
  Digest& operator=(Digest&&) noexcept;

  void add(std::string_view bytes);
  std::string hex();  // ends it

 private:
  struct State;
  explicit Digest(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace manta::model
