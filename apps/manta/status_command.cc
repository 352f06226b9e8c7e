// `manta status`: how a running deployment is, rank by rank.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "manta/commands.h"
#include "manta/http/event_stream.h"

namespace manta {
namespace {

using nlohmann::json;

std::string describe(const json& where) {
  const int layer = where.value("layer", -1);
  const auto at = layer < 0 ? "" : fmt::format("layer {}, ", layer);
  return fmt::format("step {}, {}{}", where.value("step", 0), at, where.value("stage", "?"));
}

void print_table(const json& status) {
  fmt::print("{}, {}\n", status.value("model", "?"), status.value("status", "?"));
  fmt::print("{:>4}  {:8} {:9} {:20} {:>8} {:>6} {:>8} {:>8} {:>7}  {}\n", "rank", "role", "state", "host", "pid",
             "epoch", "running", "waiting", "cache", "stands at");
  for (const json& rank : status.value("ranks", json::array())) {
    const double blocks = rank.value("num_blocks", 0);
    const double used = blocks > 0 ? 100 * (1 - rank.value("num_free_blocks", 0) / blocks) : 0;
    fmt::print("{:>4}  {:8} {:9} {:20} {:>8} {:>6} {:>8} {:>8} {:>5.1f} %  {}\n", rank.value("rank", 0),
               rank.value("role", ""), rank.value("state", ""), rank.value("host", ""), rank.value("pid", 0),
               rank.value("epoch", 0), rank.value("num_running", 0), rank.value("num_waiting", 0), used,
               describe(rank.value("where", json::object())));
  }
}

}  // namespace

int run_status(const Args& args) {
  CLI::App app("how a running deployment is, rank by rank", "manta status");
  std::string url = "http://127.0.0.1:8000";
  bool as_json = false;
  app.add_option("--url", url, "of its API; " + url);
  app.add_flag("--json", as_json, "all there is to know, for programs");
  try {
    app.parse(Args(args.rbegin(), args.rend()));  // CLI11 takes them from the back
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  const auto server = http_client::parse_url(url);
  const auto body = server.ok() ? http_client::get(*server, "/status") : Result<std::string>(server.error());
  const json status = body.ok() ? json::parse(*body, nullptr, /*allow_exceptions=*/false) : json();
  if (!status.is_object()) {
    fmt::print(stderr, "manta status: {}: {}\n", url, body.ok() ? "not a manta server" : body.error().message);
    return 1;
  }
  if (as_json) {
    fmt::print("{}\n", status.dump(2));
  } else {
    print_table(status);
  }
  return status.value("status", "") == "ready" ? 0 : 1;
}

}  // namespace manta
