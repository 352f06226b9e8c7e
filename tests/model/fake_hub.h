// A Hugging Face Hub on a free port of this machine: the API's list of files, /resolve/ with ranges, and the
// misfortunes a client must survive. It answers one connection at a time and remembers what it was asked.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace manta::model {

class FakeHub {
 public:
  struct File {
    std::string bytes;
    bool lfs = false;
  };
  struct Asked {
    std::string target, range, authorization;
  };

  FakeHub(std::string model, std::map<std::string, File> files);
  // certificate and key as PEM: serves https.
  FakeHub(std::string model, std::map<std::string, File> files, std::string certificate, std::string key);
  ~FakeHub();
  FakeHub(const FakeHub&) = delete;

  std::string url() const;
  const std::string& commit() const { return commit_; }
  std::vector<Asked> asked() const;

  // Set before the first request.
  std::string token;                                 // requests without it get 401
  std::map<std::string, size_t> break_after;         // file -> bytes of its body, then the connection closes; once
  std::map<std::string, std::string> serve_instead;  // file -> other bytes than the list says
  bool ignores_ranges = false;
  bool redirects = false;  // /resolve/ answers 302 to /cdn/, as the Hub does for large files
  std::string listing;     // replaces the API's answer

 private:
  struct Server;
  struct Reply;
  void start(std::string certificate, std::string key);
  Reply answer(const Asked& asked);
  Reply answer_file(const Asked& asked, const std::string& name);
  std::string make_listing() const;

  const std::string model_;
  const std::map<std::string, File> files_;
  const std::string commit_ = "0123456789abcdef0123456789abcdef01234567";
  mutable std::mutex mutex_;
  std::vector<Asked> asked_;
  std::unique_ptr<Server> server_;
};

}  // namespace manta::model
