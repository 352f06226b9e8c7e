#include "router/metrics_job.h"

#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <utility>

namespace manta::router {

namespace asio = boost::asio;

namespace {

constexpr std::chrono::seconds kPatience{2};

class MetricsJob : public std::enable_shared_from_this<MetricsJob> {
 public:
  MetricsJob(asio::io_context& io, MetricsMerger merged, api::ResponseWriterPtr writer)
      : timer_(io), merged_(std::move(merged)), writer_(std::move(writer)) {}

  void start(std::vector<MetricsSource> sources) {
    self_ = shared_from_this();
    const auto self = self_;
    for (auto& source : sources) {
      if (!source.link->connected()) continue;
      pages_.push_back(std::make_unique<Page>(*this, source.link, std::move(source.labels)));
    }
    num_missing_ = pages_.size();
    if (num_missing_ == 0) return finish();
    writer_->on_gone([weak = weak_from_this()] {
      if (const auto job = weak.lock()) job->finish();
    });
    timer_.expires_after(kPatience);
    timer_.async_wait([self](boost::system::error_code ec) {
      if (!ec) self->finish();
    });
    for (const auto& page : pages_) {
      api::RelayRequest request{.method = "GET", .path = "/metrics"};
      page->stream = page->link->open(std::move(request), *page);
    }
  }

 private:
  struct Page : StreamSink {
    Page(MetricsJob& j, Link* l, MetricsMerger::Labels other) : job(j), link(l), labels(std::move(other)) {}
    void on_piece(const api::Piece& piece) override {
      if (piece.status != 0) ok = piece.status == 200;
      text.append(piece.bytes);
      if (!piece.end) return;
      stream = 0;
      if (ok) job.merged_.add(text, labels);
      job.count_down();
    }
    void on_lost(const std::string&) override {
      stream = 0;
      job.count_down();
    }
    MetricsJob& job;
    Link* link;
    MetricsMerger::Labels labels;
    api::StreamId stream = 0;
    bool ok = false;
    std::string text;
  };

  void count_down() {
    if (--num_missing_ == 0) finish();
  }

  void finish() {
    if (!self_) return;
    timer_.cancel();
    for (const auto& page : pages_) {
      if (page->stream != 0) page->link->cancel(page->stream);
    }
    writer_->send({.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = merged_.page()});
    // The caller may be a page of ours.
    asio::post(timer_.get_executor(), [last = std::move(self_)] {});
  }

  asio::steady_timer timer_;
  MetricsMerger merged_;
  api::ResponseWriterPtr writer_;
  std::vector<std::unique_ptr<Page>> pages_;
  size_t num_missing_ = 0;
  std::shared_ptr<MetricsJob> self_;
};

}  // namespace

void answer_metrics(asio::io_context& io, std::vector<MetricsSource> sources, MetricsMerger merged,
                    api::ResponseWriterPtr writer) {
  std::make_shared<MetricsJob>(io, std::move(merged), std::move(writer))->start(std::move(sources));
}

}  // namespace manta::router
