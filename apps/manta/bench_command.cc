#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "manta/bench/load_client.h"
#include "manta/bench/report.h"
#include "manta/bench/workload.h"
#include "manta/commands.h"
#include "manta/http/event_stream.h"

namespace manta {
namespace {

using nlohmann::json;

struct ServeBench {
  bench::WorkloadOptions workload;
  http_client::ServerAddress server;
  int concurrency = 16;
  std::string api_key;
  std::string url = "http://127.0.0.1:8000";
  std::string json_path, plot_path;
  bool respect_eos = false;
};

void add_options(CLI::App& app, ServeBench& b) {
  app.add_option("--url", b.url, "the server, http://host:port")->capture_default_str();
  app.add_option("--model", b.workload.model, "model name; not given: the first the server lists");
  app.add_option("--api-key", b.api_key, "Bearer token");
  app.add_option("--num-prompts", b.workload.num_requests, "requests in all")
      ->check(CLI::Range(1, 10'000'000))
      ->capture_default_str();
  app.add_option("--concurrency,--max-concurrency", b.concurrency, "most requests in flight")
      ->check(CLI::Range(1, 100'000))
      ->capture_default_str();
  app.add_option("--request-rate", b.workload.request_rate,
                 "arrivals per second, Poisson; 0: as fast as concurrency allows")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--input-len", b.workload.input_len, "prompt tokens of generated requests")
      ->check(CLI::Range(1, 10'000'000))
      ->capture_default_str();
  app.add_option("--output-len", b.workload.output_len, "tokens to generate")
      ->check(CLI::Range(1, 10'000'000))
      ->capture_default_str();
  app.add_option("--prefix-len", b.workload.prefix_len, "leading prompt tokens that all requests share")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--vocab-size", b.workload.vocab_size, "generated prompts use ids below this")
      ->check(CLI::Range(5, 10'000'000))
      ->capture_default_str();
  app.add_option("--dataset", b.workload.dataset, "JSON lines with messages or prompt, instead of generated requests");
  app.add_option("--seed", b.workload.seed, "of prompts and arrivals")->capture_default_str();
  app.add_flag("--respect-eos", b.respect_eos, "stop at the end token (default: exactly --output-len tokens)");
  app.add_option("--json", b.json_path, "write the figures to this file");
  app.add_option("--plot", b.plot_path, "write a plot to this .svg file");
}

Status write_file(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary);
  file << content;
  file.close();
  if (file.good()) return {};
  return error(ErrorCode::kInvalidArgument, fmt::format("{}: cannot be written", path));
}

Result<bench::Report> run(ServeBench& b) {
  MANTA_ASSIGN(b.server, http_client::parse_url(b.url));
  b.server.api_key = b.api_key;
  if (b.workload.model.empty()) {
    MANTA_ASSIGN(b.workload.model, http_client::first_model(b.server));
  }
  b.workload.ignore_eos = !b.respect_eos;
  MANTA_ASSIGN(const auto requests, bench::make_workload(b.workload));
  const auto records = bench::run_load(b.server, b.concurrency, requests);
  const bench::Report report = bench::make_report(records);
  fmt::print("{}", bench::to_table(report));
  const json setup{{"url", b.url},
                   {"model", b.workload.model},
                   {"concurrency", b.concurrency},
                   {"request_rate", b.workload.request_rate},
                   {"input_len", b.workload.input_len},
                   {"output_len", b.workload.output_len},
                   {"prefix_len", b.workload.prefix_len},
                   {"version", MANTA_VERSION}};
  if (!b.json_path.empty()) MANTA_TRY(write_file(b.json_path, bench::to_json(report, setup.dump()) + "\n"));
  if (!b.plot_path.empty()) {
    MANTA_TRY(write_file(b.plot_path, bench::to_svg(report, fmt::format("{} on {}, {} requests", b.workload.model,
                                                                        b.url, report.num_requests))));
  }
  return report;
}

}  // namespace

int run_bench(const Args& args) {
  CLI::App app("measures a serving deployment", "manta bench");
  app.require_subcommand(1);
  ServeBench serve;
  add_options(*app.add_subcommand("serve", "load generator for an OpenAI-compatible server"), serve);
  Args reversed(args.rbegin(), args.rend());
  try {
    app.parse(reversed);
  } catch (const CLI::ParseError& e) {
    return app.exit(e) == 0 ? 0 : 2;
  }
  const auto report = run(serve);
  if (!report.ok()) {
    fmt::print(stderr, "manta bench serve: {}\n", report.error().message);
    return 1;
  }
  return report->num_ok == report->num_requests ? 0 : 1;
}

}  // namespace manta
