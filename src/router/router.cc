#include "router/router.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/steady_timer.hpp>
#include <list>
#include <random>
#include <utility>

#include "api/event_loop.h"
#include "api/metrics_text.h"
#include "api/openai/api_error.h"
#include "api/openai/generation_job.h"
#include "api/openai/json_writer.h"
#include "api/openai/request_id.h"
#include "api/openai/routed_prompt.h"
#include "base/log.h"
#include "router/endpoints.h"
#include "router/kv_peers.h"
#include "router/metrics_job.h"
#include "router/relay_job.h"

namespace manta::router {

namespace asio = boost::asio;
using api::HttpRequest;
using api::JsonWriter;
using api::LoopContext;
using api::ResponseWriterPtr;

namespace {

struct Plan {
  PoolOptions decode;
  std::optional<PoolOptions> prefill;
  std::optional<std::string> endpoints_file;
  RouterCounters counters;  // of all loops
};

// What one event loop of the router owns.
class Loop : public JobHost {
 public:
  Loop(asio::io_context& io, std::shared_ptr<Plan> plan, std::function<void()> on_complete)
      : io_(io),
        plan_(std::move(plan)),
        timer_(io),
        random_(api::unpredictable()),
        on_complete_(std::move(on_complete)) {
    decode_ = std::make_unique<Pool>(io, plan_->decode, [this] { on_change(); });
    if (plan_->prefill) prefill_ = std::make_unique<Pool>(io, *plan_->prefill, [this] { on_change(); });
    if (!plan_->endpoints_file) return;
    watch_ = std::make_unique<EndpointsWatch>(io, *plan_->endpoints_file, [this](const Endpoints& e) { follow(e); });
  }

  Pool& decode() override { return *decode_; }
  Pool* prefill() override { return prefill_.get(); }
  KvPeers& kv_peers() override { return kv_peers_; }
  RouterCounters& counters() override { return plan_->counters; }
  std::string draw_id() override { return api::random_id(random_); }
  uint64_t draw_seed() override { return random_() >> 1; }
  void wait_for_rank(std::chrono::steady_clock::time_point deadline, std::function<void(bool)> retry) override {
    waiting_.push_back({deadline, std::move(retry)});
    arm();
  }

  asio::io_context& io() { return io_; }

 private:
  struct Waiting {
    std::chrono::steady_clock::time_point deadline;
    std::function<void(bool)> retry;
  };

  void on_change() {
    if (!decode_ || (plan_->prefill && !prefill_)) return;  // still being made
    if (on_complete_ && decode_->ready() && (!prefill_ || prefill_->ready())) {
      if (prefill_) compare_caches();
      std::exchange(on_complete_, nullptr)();
    }
    if (waiting_.empty() || !decode_->ready()) return;
    for (auto& waiting : std::exchange(waiting_, {})) waiting.retry(false);
  }

  // What does not fit is said before the first request finds it; ranks that come later are compared when they are used.
  void compare_caches() {
    for (const Link* prefill : prefill_->processes()) {
      for (const Link* decode : decode_->processes()) {
        for (const auto& from : prefill->views().ranks) {
          for (const auto& to : decode->views().ranks) kv_peers_.pull_params(from.kv_transfer, to.kv_transfer);
        }
      }
    }
  }

  // Whether there is a prefill role at all is decided at the start.
  void follow(const Endpoints& endpoints) {
    spdlog::info("endpoints: {} to prefill, {} to decode", endpoints.prefill.size(), endpoints.decode.size());
    decode_->set_coordinators(endpoints.decode);
    if (prefill_) prefill_->set_coordinators(endpoints.prefill);
  }

  void arm() {
    const auto next = std::min_element(waiting_.begin(), waiting_.end(),
                                       [](const Waiting& a, const Waiting& b) { return a.deadline < b.deadline; });
    timer_.expires_at(next->deadline);
    timer_.async_wait([this](boost::system::error_code ec) {
      if (ec) return;
      const auto now = std::chrono::steady_clock::now();
      std::list<Waiting> late;
      for (auto it = waiting_.begin(); it != waiting_.end();) {
        const auto at = it++;
        if (at->deadline <= now) late.splice(late.end(), waiting_, at);
      }
      if (!waiting_.empty()) arm();
      for (auto& waiting : late) waiting.retry(true);
    });
  }

  asio::io_context& io_;
  const std::shared_ptr<Plan> plan_;
  asio::steady_timer timer_;
  std::mt19937_64 random_;
  std::function<void()> on_complete_;  // null once called
  std::list<Waiting> waiting_;
  std::unique_ptr<Pool> decode_, prefill_;
  KvPeers kv_peers_;
  std::unique_ptr<EndpointsWatch> watch_;  // null: the endpoints are fixed
};
using LoopPtr = std::shared_ptr<Loop>;

// What api's own handlers (models, tokenize, …) ask of the engines.
class PoolGenerator : public api::Generator {
 public:
  explicit PoolGenerator(LoopPtr loop) : loop_(std::move(loop)) {}
  Result<RequestId> submit(engine::Submit, OnOutput, std::optional<int>) override {
    return error(ErrorCode::kInternal, "a router generates nothing itself");
  }
  void abort(RequestId) override {}
  std::optional<engine::Welcome> model() const override { return loop_->decode().model(); }
  bool ready() const override { return loop_->decode().ready(); }
  std::vector<engine::EngineView> engines() const override { return {}; }
  std::optional<int> rank_of(RequestId) const override { return {}; }
  void on_resubmit(std::function<void(int, engine::ResubmitReason)>) override {}

 private:
  LoopPtr loop_;
};

void write_process(const Link& link, JsonWriter& json) {
  json.begin_object().key("address").string(link.address()).key("connected").boolean(link.connected());
  if (link.connected()) {
    const api::RankViews& views = link.views();
    json.key("pid").number(int64_t{views.pid}).key("draining").boolean(views.draining).key("ranks").begin_array();
    for (const auto& rank : views.ranks) {
      json.begin_object().key("rank").number(int64_t{rank.rank}).key("ready").boolean(rank.ready);
      json.key("num_running").number(int64_t{rank.num_running}).key("num_waiting").number(int64_t{rank.num_waiting});
      json.key("num_free_blocks").number(int64_t{rank.num_free_blocks});
      json.key("num_blocks").number(int64_t{rank.num_blocks});
      json.key("kv_transfer").boolean(!rank.kv_transfer.empty()).end_object();
    }
    json.end_array();
  }
  json.end_object();
}

void write_role(const Pool& pool, JsonWriter& json) {
  json.begin_object().key("role").string(pool.role()).key("ready").boolean(pool.ready()).key("apis").begin_array();
  for (const Link* link : pool.processes()) write_process(*link, json);
  json.end_array().end_object();
}

class RouterFront : public api::Front {
 public:
  RouterFront(LoopPtr loop, const LoopContext& context) : loop_(std::move(loop)), context_(context) {}

  bool answer(const api::Route& route, HttpRequest& request, const ResponseWriterPtr& writer) override {
    if (route.generates) {
      request.path = route.path;  // without the prefix that a proxy in front has left
      generate(request, writer);
    } else if (route.path == "/health" || route.path == "/ping") {
      health(writer);
    } else if (route.path == "/metrics") {
      metrics(writer);
    } else {
      return false;
    }
    return true;
  }

 private:
  // A request until it is sent on.
  struct Arrival {
    HttpRequest request;
    api::RoutedInputs inputs;
    api::RoutedPrompt prompt;
    api::Admission::Ticket ticket;
    api::Problem problem;
  };

  void generate(HttpRequest& request, const ResponseWriterPtr& writer) {
    auto arrival = std::make_shared<Arrival>();
    if (const auto problem = read_routed_request(context_, request, arrival->inputs, arrival->prompt)) {
      return writer->send(problem->response());
    }
    if (const auto problem = api::GenerationJob::admit(context_, arrival->inputs.num_sequences(), arrival->ticket)) {
      return writer->send(problem->response());
    }
    arrival->request = std::move(request);
    context_.offload.run(
        arrival->request.body.size(), writer,
        [&context = context_, arrival] {
          arrival->problem = make_routed_prompts(context, arrival->inputs, arrival->prompt);
        },
        [loop = loop_, arrival, writer] {
          if (arrival->problem) return writer->send(arrival->problem->response());
          RelayJob::start(*loop, std::move(arrival->request), std::move(arrival->prompt), writer,
                          std::move(arrival->ticket));
        });
  }

  // Without a prefill rank, decode ranks compute prompts themselves: slower, but served.
  void health(const ResponseWriterPtr& writer) {
    const bool draining = context_.draining.load(std::memory_order_relaxed);
    Pool* prefill = loop_->prefill();
    const bool healthy = loop_->decode().ready() && !draining;
    const char* status = "not ready";
    if (healthy) status = prefill && !prefill->ready() ? "degraded: no prefill rank is ready" : "ready";
    if (draining) status = "draining";
    api::HttpResponse response{.status = healthy ? 200 : 503};
    JsonWriter json(response.body);
    json.begin_object().key("status").string(status).key("roles").begin_array();
    if (prefill) write_role(*prefill, json);
    write_role(loop_->decode(), json);
    json.end_array().end_object();
    if (!healthy) response.headers.push_back({"Retry-After", "1"});
    writer->send(std::move(response));
  }

  void metrics(const ResponseWriterPtr& writer) {
    MetricsMerger merged;
    merged.add(own_page(), {});
    std::vector<MetricsSource> sources;
    const auto add = [&](const Pool& pool) {
      int index = 0;
      for (Link* link : pool.processes()) {
        sources.push_back({link, {{"role", pool.role()}, {"api", std::to_string(index++)}}});
      }
    };
    if (loop_->prefill()) add(*loop_->prefill());
    add(loop_->decode());
    answer_metrics(loop_->io(), std::move(sources), std::move(merged), writer);
  }

  std::string own_page() const {
    std::string out;
    api::MetricsText text(out);
    const RouterCounters& counters = loop_->counters();
    const auto counter = [&](std::string_view name, std::string_view help, const std::atomic<uint64_t>& value) {
      text.family(name, "counter", help);
      text.sample({}, value.load(std::memory_order_relaxed));
    };
    counter("manta_router_requests_total", "Requests sent on.", counters.requests);
    counter("manta_router_resubmissions_total", "Requests sent again because their api process died.",
            counters.resubmissions);
    counter("manta_router_prefill_fallbacks_total", "Requests whose prefill failed and was done otherwise.",
            counters.prefill_fallbacks);
    counter("manta_router_disconnects_total", "Requests whose client went away.", counters.disconnects);
    counter("manta_router_failures_total", "Requests that no rank could finish.", counters.failures);
    text.family("manta_router_requests_in_flight", "gauge", "Sequences under way, over all event loops.");
    text.sample({}, static_cast<uint64_t>(context_.admission.num_admitted()));
    return out;
  }

  LoopPtr loop_;
  const LoopContext& context_;
};

Result<PoolOptions> pool_options(std::string role, std::vector<std::string> coordinators, const std::string& policy) {
  PoolOptions out{.role = std::move(role), .coordinators = std::move(coordinators)};
  MANTA_ASSIGN(out.policy, policy_from_name(policy));
  out.process = fmt::format("router pid {}", ::getpid());
  return out;
}

Result<std::shared_ptr<Plan>> make_plan(const Settings& settings) {
  auto plan = std::make_shared<Plan>();
  plan->endpoints_file = settings.endpoints;
  Endpoints endpoints{settings.prefill_endpoints, settings.decode_endpoints};
  if (settings.endpoints) {
    if (endpoints != Endpoints{}) {
      return error(ErrorCode::kInvalidArgument, "endpoints: excludes prefill_endpoints and decode_endpoints");
    }
    MANTA_ASSIGN(endpoints, read_endpoints(*settings.endpoints));
  } else if (endpoints.decode.empty()) {
    return error(ErrorCode::kInvalidArgument,
                 "decode_endpoints: not given; give the coordinator of the deployment that decodes, or --endpoints");
  }
  const bool two_sided = !endpoints.prefill.empty();
  const char* role = two_sided ? "decode" : "mixed";
  MANTA_ASSIGN(plan->decode, pool_options(role, endpoints.decode, settings.decode_policy));
  if (two_sided) {
    MANTA_ASSIGN(plan->prefill, pool_options("prefill", endpoints.prefill, settings.prefill_policy));
  }
  return plan;
}

}  // namespace

Result<std::unique_ptr<api::ApiServer>> start_router(Settings settings, const std::function<void()>& on_loop_complete) {
  MANTA_ASSIGN(const std::shared_ptr<Plan> plan, make_plan(settings));
  settings.enable_request_id_headers = false;  // every answer has one anyway
  const auto loops = std::make_shared<std::vector<std::weak_ptr<Loop>>>();
  const auto make_generator = [=](asio::io_context& io, int, const std::string&) -> std::unique_ptr<api::Generator> {
    const auto loop = std::make_shared<Loop>(io, plan, on_loop_complete);
    loops->push_back(loop);
    return std::make_unique<PoolGenerator>(loop);
  };
  const auto make_front = [=](asio::io_context&, int index, const LoopContext& context) -> std::unique_ptr<api::Front> {
    return std::make_unique<RouterFront>((*loops)[static_cast<size_t>(index)].lock(), context);
  };
  return api::ApiServer::start(settings, make_generator, /*relay_address=*/"", make_front);
}

Status run_router(const Settings& settings, const std::function<void(const std::string& url)>& on_ready) {
  const auto make_server = [&](const std::function<void()>& on_loop_complete) {
    return start_router(settings, on_loop_complete);
  };
  return api::run_server(make_server, static_cast<int>(settings.api_server_count.value_or(1)), on_ready);
}

}  // namespace manta::router
