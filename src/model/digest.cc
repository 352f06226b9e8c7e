#include "model/digest.h"

#include <fmt/format.h>
#include <openssl/evp.h>

namespace manta::model {

struct Digest::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Digest::Digest(std::unique_ptr<State> state) : state_(std::move(state)) {}
Digest::~Digest() = default;
Digest::Digest(Digest&&) noexcept = default;
Digest& Digest::operator=(Digest&&) noexcept = default;

Digest Digest::sha256() {
  auto state = std::make_unique<State>();
  EVP_DigestInit_ex(state->context, EVP_sha256(), nullptr);
  return Digest(std::move(state));
}

Digest Digest::git_blob(uint64_t num_bytes) {
  auto state = std::make_unique<State>();
  EVP_DigestInit_ex(state->context, EVP_sha1(), nullptr);
  Digest digest(std::move(state));
  const std::string start = fmt::format("blob {}", num_bytes);
  digest.add({start.c_str(), start.size() + 1});  // with its \0
  return digest;
}

void Digest::add(std::string_view bytes) {
  EVP_DigestUpdate(state_->context, bytes.data(), bytes.size());
}

std::string Digest::hex() {
  unsigned char hash[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  EVP_DigestFinal_ex(state_->context, hash, &size);
  std::string text;
  for (unsigned i = 0; i < size; ++i) text += fmt::format("{:02x}", hash[i]);
  return text;
}

}  // namespace manta::model
