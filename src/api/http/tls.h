// TLS from PEM files. Only http/tls.cc sees OpenSSL.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "api/http/transport.h"
#include "base/result.h"

namespace manta::api {

struct TlsOptions {
  std::string keyfile, certfile;
  std::optional<std::string> ca_certs;  // authorities for client certificates
  int cert_reqs = 0;                    // client certificates: 0 none, 1 optional, 2 required
  std::optional<std::string> ciphers;   // OpenSSL list, TLS 1.2
};

// The server's certificate and rules; TLS 1.2 and 1.3. Shared by all loops.
class TlsContext {
 public:
  // kInvalidArgument naming the file that cannot be used.
  static Result<std::shared_ptr<TlsContext>> create(const TlsOptions& options);
  virtual ~TlsContext() = default;
  virtual std::unique_ptr<Transport> wrap(StreamSocket socket) = 0;
};

}  // namespace manta::api
