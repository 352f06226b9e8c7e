#include "api/http/tls.h"

#include <fmt/format.h>

#include <boost/asio/basic_stream_socket.hpp>
#include <boost/asio/ssl.hpp>
#include <utility>

namespace manta::api {
namespace {

namespace ssl = asio::ssl;

class TlsTransport : public Transport {
 public:
  TlsTransport(StreamSocket socket, ssl::context& context)
      : stream_(std::make_shared<ssl::stream<StreamSocket>>(std::move(socket), context)) {}

  void handshake(OnDone done) override { stream_->async_handshake(ssl::stream_base::server, std::move(done)); }
  void read_some(asio::mutable_buffer buffer, OnIo done) override { stream_->async_read_some(buffer, std::move(done)); }
  void write_some(asio::const_buffer buffer, OnIo done) override { stream_->async_write_some(buffer, std::move(done)); }
  size_t write_now(std::string_view, error_code&) override { return 0; }
  // close_notify. Nobody waits for it, so the operation itself keeps the stream alive.
  void shutdown_send() override {
    stream_->async_shutdown([stream = stream_](error_code) {});
  }
  void close() override {
    error_code ignored;
    stream_->next_layer().close(ignored);
  }

 private:
  std::shared_ptr<ssl::stream<StreamSocket>> stream_;
};

class OpenSslContext : public TlsContext {
 public:
  Status configure(const TlsOptions& options);
  std::unique_ptr<Transport> wrap(StreamSocket socket) override {
    return std::make_unique<TlsTransport>(std::move(socket), context_);
  }

 private:
  ssl::context context_{ssl::context::tls_server};
};

Status check(const error_code& ec, const char* key, const std::string& value) {
  if (!ec) return {};
  return error(ErrorCode::kInvalidArgument, fmt::format("{} {}: {}", key, value, ec.message()));
}

Status OpenSslContext::configure(const TlsOptions& options) {
  context_.set_options(ssl::context::default_workarounds | ssl::context::no_sslv2 | ssl::context::no_sslv3 |
                       ssl::context::no_tlsv1 | ssl::context::no_tlsv1_1 | ssl::context::no_compression);
  error_code ec;
  context_.use_certificate_chain_file(options.certfile, ec);
  MANTA_TRY(check(ec, "ssl_certfile", options.certfile));
  context_.use_private_key_file(options.keyfile, ssl::context::pem, ec);
  MANTA_TRY(check(ec, "ssl_keyfile", options.keyfile));
  if (options.ca_certs) {
    context_.load_verify_file(*options.ca_certs, ec);
    MANTA_TRY(check(ec, "ssl_ca_certs", *options.ca_certs));
  }
  if (options.ciphers && SSL_CTX_set_cipher_list(context_.native_handle(), options.ciphers->c_str()) != 1) {
    return error(ErrorCode::kInvalidArgument, fmt::format("ssl_ciphers {}: no usable cipher", *options.ciphers));
  }
  ssl::verify_mode mode = ssl::verify_none;
  if (options.cert_reqs >= 1) mode = ssl::verify_peer;
  if (options.cert_reqs == 2) mode |= ssl::verify_fail_if_no_peer_cert;
  context_.set_verify_mode(mode);
  return {};
}

}  // namespace

Result<std::shared_ptr<TlsContext>> TlsContext::create(const TlsOptions& options) {
  auto context = std::make_shared<OpenSslContext>();
  MANTA_TRY(context->configure(options));
  return std::shared_ptr<TlsContext>(std::move(context));
}

}  // namespace manta::api
