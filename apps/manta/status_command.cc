// `manta status`: how a running deployment is, rank by rank.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>

#include "manta/commands.h"
#include "manta/http/event_stream.h"

namespace manta {
namespace {

using nlohmann::json;

std::string describe(const json& where) {
  const int layer = where.value("layer", -1), step = where.value("step", 0);
  const auto at = layer < 0 ? "" : fmt::format("layer {}, ", layer);
  // Steps are numbered from 1; one without rows of its own, for the other ranks, has no number.
  const auto during = step > 0 ? fmt::format("step {}, ", step) : layer < 0 ? "" : "dummy step, ";
  return fmt::format("{}{}{}", during, at, where.value("stage", "?"));
}

// Counters of one rank, or the values of one of them that has several.
double counter(const json& rank, const char* name) {
  return rank.value("counters", json::object()).value(name, 0.0);
}

std::string step_time(const json& rank) {
  const json parts = rank.value("step_us", json::object());
  double us = 0;
  for (const auto& [part, spent] : parts.items()) us += spent.get<double>();
  const double steps = counter(rank, "manta_engine_steps_total");
  return steps > 0 ? fmt::format("{:.2f} ms", us / steps / 1000) : "";
}

std::string group_size(const json& rank) {
  const double size = counter(rank, "manta_ep_group_ranks");
  return size > 0 ? fmt::format("{:.0f}", size) : "";
}

// Where experts are balanced, and steps may be split.
void print_balance(const json& status) {
  const json ranks = status.value("ranks", json::array()), experts = status.value("experts", json());
  double rearranged = 0, split = 0, asked = 0;
  for (const json& rank : ranks) {
    rearranged = std::max(rearranged, counter(rank, "manta_eplb_rearrangements_total"));
    const json steps = rank.value("counters", json::object()).value("manta_dbo_steps_total", json::object());
    split += steps.value("split", 0.0);
    for (const auto& [result, number] : steps.items()) asked += number.get<double>();
  }
  if (asked > 0) fmt::print("{:.0f} % of the steps in two microbatches\n", 100 * split / asked);
  if (!experts.is_object()) return;
  const auto balanced = experts.value("balancedness", std::vector<double>());
  if (balanced.empty()) return;
  fmt::print("experts: balancedness {:.3f} on average, {:.3f} at worst, rearranged {:.0f} times\n",
             std::accumulate(balanced.begin(), balanced.end(), 0.0) / static_cast<double>(balanced.size()),
             *std::min_element(balanced.begin(), balanced.end()), rearranged);
}

void print_table(const json& status) {
  const auto missing = status.value("missing_ranks", std::vector<int>());
  fmt::print("{}, {}{}\n", status.value("model", "?"), status.value("status", "?"),
             missing.empty() ? "" : fmt::format("; missing: rank {}", fmt::join(missing, ", ")));
  fmt::print("{:>4}  {:8} {:9} {:20} {:>8} {:>6} {:>5} {:>8} {:>8} {:>7} {:>10}  {}\n", "rank", "role", "state", "host",
             "pid", "epoch", "group", "running", "waiting", "cache", "step", "stands at");
  for (const json& rank : status.value("ranks", json::array())) {
    const double blocks = rank.value("num_blocks", 0);
    const double used = blocks > 0 ? 100 * (1 - rank.value("num_free_blocks", 0) / blocks) : 0;
    fmt::print("{:>4}  {:8} {:9} {:20} {:>8} {:>6} {:>5} {:>8} {:>8} {:>5.1f} % {:>10}  {}\n", rank.value("rank", 0),
               rank.value("role", ""), rank.value("state", ""), rank.value("host", ""), rank.value("pid", 0),
               rank.value("epoch", 0), group_size(rank), rank.value("num_running", 0), rank.value("num_waiting", 0),
               used, step_time(rank), describe(rank.value("where", json::object())));
  }
  print_balance(status);
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
