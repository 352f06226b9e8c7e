#include "model/hub.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>  // setenv

#include <algorithm>
#include <fstream>
#include <iterator>

#include "fake_hub.h"
#include "model/digest.h"
#include "model/hub_cache.h"
#include "model/hub_listing.h"
#include "test_certificate.h"
#include "test_checkpoint.h"

namespace manta::model {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Files = std::map<std::string, FakeHub::File>;

const std::string kModel = "some-org/tiny_model-1.0";

Files good_files() {
  return {{"config.json", {"{}"}},
          {"tokenizer.json", {"{\"version\": \"1.0\"}"}},
          {"model.safetensors", {std::string(700000, 'w') + "end", true}},
          {"README.md", {"not for serving"}},
          {"pytorch_model.bin", {"neither", true}}};
}

std::string read(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

class Hub : public ::testing::Test {
 protected:
  HubOptions options(const FakeHub& hub) const {
    HubOptions o;
    o.cache = cache_.file("hub");
    o.endpoint = hub.url() + "/";  // a trailing slash is common
    o.retry_delay = std::chrono::milliseconds(0);
    return o;
  }
  fs::path repo() const { return fs::path(cache_.file("hub")) / "models--some-org--tiny_model-1.0"; }
  void expect_complete(const Result<std::string>& folder, const FakeHub& hub) const {
    ASSERT_TRUE(folder.ok()) << folder.error().message;
    EXPECT_EQ(fs::path(*folder), repo() / "snapshots" / hub.commit());
    for (const auto& [name, file] : good_files()) {
      if (name == "README.md" || name == "pytorch_model.bin") {
        EXPECT_FALSE(fs::exists(fs::path(*folder) / name)) << name;
      } else {
        EXPECT_EQ(read(fs::path(*folder) / name), file.bytes) << name;
      }
    }
    for (const auto& entry : fs::directory_iterator(repo() / "blobs")) {
      EXPECT_NE(entry.path().extension(), ".incomplete") << entry.path();
    }
  }
  static int times_asked(const FakeHub& hub, const std::string& file) {
    const auto asked = hub.asked();
    return static_cast<int>(std::count_if(asked.begin(), asked.end(), [&](const auto& a) {
      return a.target.size() > file.size() && a.target.substr(a.target.size() - file.size()) == file;
    }));
  }

  const TempFolder cache_;
};

TEST_F(Hub, AFolderIsItself) {
  const auto folder = resolve_model("models/tiny-v3", {});
  ASSERT_TRUE(folder.ok());
  EXPECT_EQ(*folder, "models/tiny-v3");
}

TEST_F(Hub, NeitherFolderNorId) {
  for (const char* model : {"", "/nowhere/at/all", "a/b/c", "../x", "-x/y", "x/y z", "x/..", "org/na--me"}) {
    const auto folder = resolve_model(model, {});
    ASSERT_FALSE(folder.ok()) << model;
    EXPECT_THAT(folder.error().message, HasSubstr("neither a folder nor a Hub id"));
  }
  HubOptions options;
  options.revision = "../../etc";
  EXPECT_THAT(resolve_model(kModel, options).error().message, HasSubstr("revision '../../etc'"));
}

TEST_F(Hub, DownloadsIntoTheCacheOnce) {
  FakeHub hub(kModel, good_files());
  std::vector<Progress> seen;
  HubOptions o = options(hub);
  o.progress = [&](const Progress& p) { seen.push_back(p); };
  expect_complete(resolve_model(kModel, o), hub);
  EXPECT_EQ(read(repo() / "refs/main"), hub.commit());
  EXPECT_TRUE(fs::is_symlink(repo() / "snapshots" / hub.commit() / "config.json"));
  ASSERT_FALSE(seen.empty());
  EXPECT_TRUE(seen.back().finished);
  EXPECT_EQ(seen.back().bytes_done, seen.back().bytes_total);
  EXPECT_EQ(seen.back().bytes_total, 700003u + 2 + 18);

  const size_t asked = hub.asked().size();
  expect_complete(resolve_model(kModel, o), hub);
  EXPECT_EQ(hub.asked().size(), asked) << "a cached revision asks nobody";
  o.revision = hub.commit();
  o.offline = true;
  expect_complete(resolve_model(kModel, o), hub);
}

TEST_F(Hub, ByCommit) {
  FakeHub hub(kModel, good_files());
  HubOptions o = options(hub);
  o.revision = hub.commit();
  expect_complete(resolve_model(kModel, o), hub);
}

TEST_F(Hub, GoesOnAfterABrokenConnection) {
  FakeHub hub(kModel, good_files());
  hub.break_after["model.safetensors"] = 300000;
  expect_complete(resolve_model(kModel, options(hub)), hub);
  const auto asked = hub.asked();
  EXPECT_TRUE(std::any_of(asked.begin(), asked.end(), [](const auto& a) { return a.range == "bytes=300000-"; }));
}

TEST_F(Hub, TheNextStartGoesOn) {
  FakeHub hub(kModel, good_files());
  hub.break_after["model.safetensors"] = 300000;
  HubOptions o = options(hub);
  o.max_attempts = 1;
  const auto first = resolve_model(kModel, o);
  ASSERT_FALSE(first.ok());
  EXPECT_THAT(first.error().message, HasSubstr("goes on from there"));
  EXPECT_FALSE(fs::exists(repo() / "refs/main"));
  expect_complete(resolve_model(kModel, o), hub);
  EXPECT_EQ(times_asked(hub, "/config.json"), 1) << "whole files are kept too";
}

TEST_F(Hub, AServerWithoutRangesStartsOver) {
  FakeHub hub(kModel, good_files());
  hub.break_after["model.safetensors"] = 300000;
  hub.ignores_ranges = true;
  expect_complete(resolve_model(kModel, options(hub)), hub);
}

TEST_F(Hub, FollowsRedirects) {
  FakeHub hub(kModel, good_files());
  hub.redirects = true;
  hub.break_after["model.safetensors"] = 10;
  expect_complete(resolve_model(kModel, options(hub)), hub);
}

TEST_F(Hub, WrongBytesAreNotUsed) {
  const struct {
    const char *file, *message;
    std::string bytes;
  } kCases[] = {{"model.safetensors", "model.safetensors: its hash", std::string(700003, 'x')},
                {"config.json", "config.json: its hash", "[]"},
                {"config.json", "config.json: more than the 2 bytes", "{}..."}};
  for (const auto& c : kCases) {
    FakeHub hub(kModel, good_files());
    hub.serve_instead[c.file] = c.bytes;
    HubOptions o = options(hub);
    o.cache += std::string("/") + c.message;
    const auto folder = resolve_model(kModel, o);
    ASSERT_FALSE(folder.ok()) << c.message;
    EXPECT_EQ(folder.error().code, ErrorCode::kDataLoss);
    EXPECT_THAT(folder.error().message, HasSubstr(c.message));
  }
}

TEST_F(Hub, ADamagedPartialFileIsFetchedAgain) {
  FakeHub hub(kModel, good_files());
  Digest sha = Digest::sha256();
  sha.add(good_files()["model.safetensors"].bytes);
  fs::create_directories(repo() / "blobs");
  write_file((repo() / "blobs" / (sha.hex() + ".incomplete")).string(), "something else");
  expect_complete(resolve_model(kModel, options(hub)), hub);
}

TEST_F(Hub, Tokens) {
  FakeHub hub(kModel, good_files());
  hub.token = "hf_secret";
  EXPECT_THAT(resolve_model(kModel, options(hub)).error().message, AllOf(HasSubstr("401"), HasSubstr("set HF_TOKEN")));
  HubOptions o = options(hub);
  o.token = "hf_wrong";
  const std::string message = resolve_model(kModel, o).error().message;
  EXPECT_THAT(message, HasSubstr("may not read it"));
  EXPECT_THAT(message, ::testing::Not(HasSubstr("hf_wrong")));
  o.token = "hf_secret";
  expect_complete(resolve_model(kModel, o), hub);
}

TEST_F(Hub, NoSuchModel) {
  FakeHub hub("other/model", good_files());
  const auto folder = resolve_model(kModel, options(hub));
  EXPECT_EQ(folder.error().code, ErrorCode::kNotFound);
  EXPECT_THAT(folder.error().message, AllOf(HasSubstr(kModel), HasSubstr("'main'")));
}

TEST_F(Hub, NothingToServe) {
  Files files = good_files();
  files.erase("model.safetensors");
  FakeHub hub(kModel, files);
  EXPECT_THAT(resolve_model(kModel, options(hub)).error().message, HasSubstr("has no model.safetensors"));
}

TEST_F(Hub, OfflineSaysWhatToFetch) {
  HubOptions o;
  o.cache = cache_.file("hub");
  o.offline = true;
  o.revision = "v2";
  const auto folder = resolve_model(kModel, o);
  EXPECT_EQ(folder.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(folder.error().message,
              AllOf(HasSubstr("HF_HUB_OFFLINE"), HasSubstr("huggingface-cli download " + kModel + " --revision v2"),
                    HasSubstr("--cache-dir " + o.cache)));
  EXPECT_THAT(folder.error().message, ::testing::Not(HasSubstr("\n")));
}

TEST_F(Hub, OfflineNamesTheMissingFile) {
  FakeHub hub(kModel, good_files());
  HubOptions o = options(hub);
  const auto folder = resolve_model(kModel, o);
  ASSERT_TRUE(folder.ok());
  fs::remove(fs::path(*folder) / "model.safetensors");
  o.offline = true;
  EXPECT_THAT(resolve_model(kModel, o).error().message, HasSubstr("model.safetensors or its index is missing"));
  o.offline = false;
  expect_complete(resolve_model(kModel, o), hub);  // the blob is still there: only the link is made again
  EXPECT_EQ(times_asked(hub, "/model.safetensors"), 1);
}

TEST_F(Hub, NobodyListens) {
  HubOptions o;
  {
    const FakeHub gone(kModel, good_files());
    o = options(gone);
  }
  const auto folder = resolve_model(kModel, o);
  EXPECT_EQ(folder.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(folder.error().message, AllOf(HasSubstr("127.0.0.1"), HasSubstr("huggingface-cli download")));
  o.endpoint = "ftp://x";
  EXPECT_THAT(resolve_model(kModel, o).error().message, HasSubstr("must begin with http"));
}

TEST_F(Hub, CertificatesAreChecked) {
  FakeHub hub(kModel, good_files(), kTestCertificate, kTestKey);
  EXPECT_THAT(resolve_model(kModel, options(hub)).error().message, HasSubstr("certificate verify failed"));
  const std::string trusted = cache_.file("ca.pem");
  write_file(trusted, kTestCertificate);
  setenv("SSL_CERT_FILE", trusted.c_str(), 1);  // OpenSSL's own variable
  const auto folder = resolve_model(kModel, options(hub));
  unsetenv("SSL_CERT_FILE");
  expect_complete(folder, hub);
}

TEST(HubListing, IsCheckedBeforeItIsUsed) {
  const std::string sha(40, 'a');
  const auto parse = [&](const std::string& entry) {
    return parse_hub_listing("{\"sha\":\"" + sha + "\",\"siblings\":[" + entry + "]}");
  };
  const std::string blob = R"(,"size":3,"blobId":")" + sha + "\"}";
  EXPECT_TRUE(parse("{\"rfilename\":\"config.json\"" + blob).ok());
  // Names that would leave the folder are none that serving needs.
  for (const char* name : {"../config.json", "a/b.safetensors", ".hidden.json", "x y.json"}) {
    const auto listing = parse("{\"rfilename\":\"ok.json\"" + blob + ",{\"rfilename\":\"" + name + "\"" + blob);
    ASSERT_TRUE(listing.ok()) << name;
    EXPECT_EQ(listing->files.size(), 1u) << name;
  }
  EXPECT_FALSE(parse(R"({"rfilename":"config.json","size":3,"blobId":"../../x"})").ok());
  EXPECT_FALSE(parse(R"({"rfilename":"m.safetensors","size":3,"lfs":{"sha256":"abc"}})").ok());
  EXPECT_FALSE(parse(R"({"rfilename":"config.json","size":-3,"blobId":")" + sha + "\"}").ok());
  EXPECT_FALSE(parse(R"({"rfilename":"config.json","size":18446744073709551615,"blobId":")" + sha + "\"}").ok());
  EXPECT_FALSE(parse("").ok());
  EXPECT_FALSE(parse_hub_listing("[]").ok());
  EXPECT_FALSE(parse_hub_listing(R"({"sha":"main","siblings":[]})").ok());
}

TEST(HubCacheFolder, TheFirstThatIsSet) {
  EXPECT_EQ(hub_cache_folder("/d", {{"HF_HUB_CACHE", "/c"}}), "/d");
  EXPECT_EQ(hub_cache_folder("", {{"HF_HUB_CACHE", "/c"}, {"HF_HOME", "/h"}}), "/c");
  EXPECT_EQ(hub_cache_folder("", {{"HF_HOME", "/h"}, {"HOME", "/u"}}), "/h/hub");
  EXPECT_EQ(hub_cache_folder("", {{"XDG_CACHE_HOME", "/x"}, {"HOME", "/u"}}), "/x/huggingface/hub");
  EXPECT_EQ(hub_cache_folder("", {{"HOME", "/u"}}), "/u/.cache/huggingface/hub");
}

TEST(Digest, KnownValues) {
  Digest sha = Digest::sha256();
  sha.add("ab");
  sha.add("c");
  EXPECT_EQ(sha.hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Digest::git_blob(0).hex(), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");  // git's empty file
}

}  // namespace
}  // namespace manta::model
