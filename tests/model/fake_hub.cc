#include "fake_hub.h"

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <nlohmann/json.hpp>
#include <optional>

#include "model/digest.h"

namespace manta::model {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;

struct FakeHub::Server {
  asio::io_context io;
  std::optional<asio::ssl::context> tls;
  tcp::acceptor acceptor{io, {asio::ip::make_address("127.0.0.1"), 0}};
  std::atomic<bool> stop = false;
  std::thread thread;
};

struct FakeHub::Reply {
  int status = 200;
  std::map<std::string, std::string> headers;
  std::string body;
  size_t send_bytes = SIZE_MAX;  // of the body
};

namespace {

template <typename Stream>
bool read_request(Stream& stream, FakeHub::Asked& asked) {
  boost::beast::flat_buffer buffer;
  http::request<http::empty_body> request;
  boost::system::error_code failed;
  http::read(stream, buffer, request, failed);
  if (failed) return false;
  asked = {std::string(request.target()), std::string(request[http::field::range]),
           std::string(request[http::field::authorization])};
  return true;
}

}  // namespace

FakeHub::FakeHub(std::string model, std::map<std::string, File> files)
    : FakeHub(std::move(model), std::move(files), "", "") {}

FakeHub::FakeHub(std::string model, std::map<std::string, File> files, std::string certificate, std::string key)
    : model_(std::move(model)), files_(std::move(files)), server_(std::make_unique<Server>()) {
  start(std::move(certificate), std::move(key));
}

FakeHub::~FakeHub() {
  server_->stop = true;
  boost::system::error_code ignored;
  tcp::socket wake(server_->io);  // accept() is waiting
  wake.connect(server_->acceptor.local_endpoint(), ignored);
  server_->thread.join();
}

std::string FakeHub::url() const {
  return (server_->tls ? "https://localhost:" : "http://127.0.0.1:") +
         std::to_string(server_->acceptor.local_endpoint().port());
}

std::vector<FakeHub::Asked> FakeHub::asked() const {
  const std::lock_guard lock(mutex_);
  return asked_;
}

void FakeHub::start(std::string certificate, std::string key) {
  if (!certificate.empty()) {
    server_->tls.emplace(asio::ssl::context::tls_server);
    server_->tls->use_certificate(asio::buffer(certificate), asio::ssl::context::pem);
    server_->tls->use_private_key(asio::buffer(key), asio::ssl::context::pem);
  }
  server_->thread = std::thread([this] {
    const auto serve = [this](auto& stream) {
      Asked asked;
      if (!read_request(stream, asked)) return;
      const Reply reply = answer(asked);
      std::string text = "HTTP/1.1 " + std::to_string(reply.status) + " x\r\nConnection: close\r\n";
      for (const auto& [name, value] : reply.headers) text += name + ": " + value + "\r\n";
      text += "Content-Length: " + std::to_string(reply.body.size()) + "\r\n\r\n";
      text += reply.body.substr(0, reply.send_bytes);
      boost::system::error_code ignored;
      asio::write(stream, asio::buffer(text), ignored);
    };
    while (!server_->stop) {
      boost::system::error_code failed;
      tcp::socket socket(server_->io);
      server_->acceptor.accept(socket, failed);
      if (failed || server_->stop) continue;
      if (!server_->tls) {
        serve(socket);
        continue;
      }
      asio::ssl::stream<tcp::socket> stream(std::move(socket), *server_->tls);
      stream.handshake(asio::ssl::stream_base::server, failed);
      if (!failed) serve(stream);
    }
  });
}

FakeHub::Reply FakeHub::answer(const Asked& asked) {
  const std::lock_guard lock(mutex_);
  asked_.push_back(asked);
  const std::string api = "/api/models/" + model_ + "/revision/";
  const std::string resolve = "/" + model_ + "/resolve/" + commit_ + "/";
  const bool is_cdn = asked.target.rfind("/cdn/", 0) == 0;  // signed addresses need no token
  if (!token.empty() && !is_cdn && asked.authorization != "Bearer " + token) return {401, {}, "no"};
  if (asked.target == api + "main?blobs=true" || asked.target == api + commit_ + "?blobs=true") {
    return {200, {{"Content-Type", "application/json"}}, listing.empty() ? make_listing() : listing};
  }
  if (is_cdn) return answer_file(asked, asked.target.substr(5));
  if (asked.target.rfind(resolve, 0) != 0) return {404, {}, "no"};
  const std::string name = asked.target.substr(resolve.size());
  if (redirects) return {302, {{"Location", "/cdn/" + name}}, ""};
  return answer_file(asked, name);
}

FakeHub::Reply FakeHub::answer_file(const Asked& asked, const std::string& name) {
  const auto file = files_.find(name);
  if (file == files_.end()) return {404, {}, "no"};
  const auto instead = serve_instead.find(name);
  Reply reply;
  reply.body = instead == serve_instead.end() ? file->second.bytes : instead->second;
  if (!asked.range.empty() && !ignores_ranges) {
    const size_t first = std::stoull(asked.range.substr(6));  // "bytes=N-"
    reply.status = 206;
    reply.headers["Content-Range"] = "bytes " + std::to_string(first) + "-" + std::to_string(reply.body.size() - 1) +
                                     "/" + std::to_string(reply.body.size());
    reply.body.erase(0, first);
  }
  if (const auto at = break_after.find(name); at != break_after.end()) {
    reply.send_bytes = at->second;
    break_after.erase(at);
  }
  return reply;
}

std::string FakeHub::make_listing() const {
  nlohmann::json files = nlohmann::json::array();
  for (const auto& [name, file] : files_) {
    Digest git = Digest::git_blob(file.bytes.size());
    git.add(file.bytes);
    nlohmann::json entry = {{"rfilename", name}, {"size", file.bytes.size()}, {"blobId", git.hex()}};
    if (file.lfs) {
      Digest sha = Digest::sha256();
      sha.add(file.bytes);
      entry["lfs"] = {{"sha256", sha.hex()}, {"size", file.bytes.size()}, {"pointerSize", 135}};
    }
    files.push_back(entry);
  }
  return nlohmann::json{{"id", model_}, {"sha", commit_}, {"siblings", files}}.dump();
}

}  // namespace manta::model
