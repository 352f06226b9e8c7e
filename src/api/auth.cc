#include "api/auth.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <array>

namespace manta::api {
namespace {

using Digest = std::array<unsigned char, SHA256_DIGEST_LENGTH>;

// Digests have one length, so comparing them tells nothing of a key's.
Digest digest(std::string_view text) {
  Digest out;
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), out.data());
  return out;
}

std::string_view bearer_token(std::string_view authorization) {
  const size_t space = authorization.find(' ');
  if (space == std::string_view::npos || !equals_ignoring_case(authorization.substr(0, space), "Bearer")) return {};
  return authorization.substr(space + 1);
}

}  // namespace

std::optional<HttpResponse> check_api_key(const std::vector<std::string>& keys, std::string_view path,
                                          std::string_view authorization) {
  const bool guarded = path.starts_with("/v1/") || path == "/v1" || path.starts_with("/inference/");
  if (keys.empty() || !guarded) return {};
  const Digest given = digest(bearer_token(authorization));
  bool known = false;
  for (const auto& key : keys) {
    const Digest wanted = digest(key);
    known |= CRYPTO_memcmp(given.data(), wanted.data(), given.size()) == 0;
  }
  if (known) return {};
  return HttpResponse{
      .status = 401, .headers = {{"WWW-Authenticate", "Bearer"}}, .body = "{\"error\":\"Unauthorized\"}"};
}

}  // namespace manta::api
