#include "transfer/pull_scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <unordered_map>

#include "transfer/exchange.h"
#include "transfer/pull_table.h"
#include "transfer/transfer_params.h"

namespace manta::transfer {
namespace {

class PullScheduler : public KvConnectorScheduler {
 public:
  explicit PullScheduler(PullSchedulerOptions options) : options_(std::move(options)) {
    // Keys of an engine that was started again are not those of its forerunner: a late reader must not find a lease of
    // the same request number.
    instance_ = std::random_device{}();
  }

  void on_added(RequestId id, const std::string& text) override {
    Entry& entry = entries_[id];
    auto params = parse_transfer_params(text);
    if (params.ok()) entry.refusal = check_role(*params);
    if (!params.ok()) entry.refusal = params.error();
    if (!entry.refusal.ok()) return;
    entry.params = std::move(*params);
    if (entry.params.do_remote_decode) {
      entry.key = entry.params.transfer_id.empty() ? fmt::format("{:08x}-{}", instance_, to_string(id))
                                                   : entry.params.transfer_id;
      if (announces(entry)) save(id, entry, OfferNote::Kind::kGrown, {}, 0);
    }
    if (entry.params.do_remote_prefill) actions_.opens.push_back({id, 0, {}, 0, 0, encode(source(entry, 0))});
  }

  Result<std::optional<ExternalMatch>> match(RequestId id, std::span<const TokenId> tokens, int num_local_tokens,
                                             const std::string&) override {
    Entry& entry = entries_.at(id);
    if (!entry.refusal.ok()) return entry.refusal.error();
    ExternalMatch none;
    if (!entry.params.do_remote_prefill) return std::optional(none);
    // The last token is computed here in any case: nothing else gives its logits.
    int num_wanted = static_cast<int>(tokens.size()) - 1;
    if (const auto& blocks = entry.params.num_remote_blocks; blocks && !entry.params.remote_request_id.empty()) {
      num_wanted = static_cast<int>(std::min<int64_t>(num_wanted, int64_t{*blocks} * options_.block_size));
    }
    if (num_wanted <= num_local_tokens) {
      actions_.cancels.push_back(id);  // everything is here: the owner may have its blocks back
      return std::optional(none);
    }
    entry.num_local_tokens = num_local_tokens;
    return std::optional(ExternalMatch{num_wanted - num_local_tokens, true});
  }

  void on_allocated(RequestId id, std::span<const BlockId> blocks, int num_external_tokens) override {
    const Entry& entry = entries_.at(id);
    const int first = entry.num_local_tokens / options_.block_size;
    actions_.loads.push_back({id,
                              0,
                              {blocks.begin() + first, blocks.end()},
                              entry.num_local_tokens + num_external_tokens,
                              0,
                              encode(source(entry, first))});
  }

  void on_computed(RequestId id, std::span<const BlockId> blocks, int num_computed_tokens) override {
    const Entry& entry = entries_.at(id);
    if (entry.params.do_remote_decode && announces(entry)) {
      save(id, entry, OfferNote::Kind::kGrown, blocks, num_computed_tokens);
    }
  }

  void on_preempted(RequestId id) override {
    const Entry& entry = entries_.at(id);
    if (!entry.params.do_remote_decode) return;
    save(id, entry, OfferNote::Kind::kRestarted, {}, 0);
    actions_.before_step = true;
  }

  kv::KvActions build_actions() override { return std::exchange(actions_, {}); }
  void on_progress(const kv::KvProgress&) override {}

  HandOff on_finished(RequestId id, std::span<const BlockId> blocks, int num_tokens) override {
    const auto node = entries_.extract(id);
    const Entry& entry = node.mapped();
    if (entry.params.do_remote_prefill) actions_.cancels.push_back(id);
    if (!entry.params.do_remote_decode) return {};
    const auto offered = blocks.first(blocks_of(num_tokens));
    save(id, entry, OfferNote::Kind::kFinal, offered, num_tokens);
    return {true, format_transfer_answer({options_.engine_id,
                                          options_.host,
                                          options_.port,
                                          entry.key,
                                          {offered.begin(), offered.end()},
                                          num_tokens})};
  }

  void on_aborted(RequestId id) override {
    const auto node = entries_.extract(id);
    const TransferParams& p = node.mapped().params;
    if (p.do_remote_prefill || p.do_remote_decode) actions_.cancels.push_back(id);
    actions_.before_step |= p.do_remote_decode;
  }

 private:
  struct Entry {
    TransferParams params;
    Status refusal;
    std::string key;  // of its lease here
    int num_local_tokens = 0;
  };

  // Chunk by chunk, for a reader that may come before the prefill's answer.
  static bool announces(const Entry& entry) { return !entry.params.transfer_id.empty(); }

  size_t blocks_of(int num_tokens) const {
    return static_cast<size_t>((num_tokens + options_.block_size - 1) / options_.block_size);
  }

  Status check_role(const TransferParams& p) const {
    const auto refuse = [](const char* role, const char* flag, const char* other) {
      return error(
          ErrorCode::kInvalidArgument,
          fmt::format("this deployment is {}; a request with kv_transfer_params.{} belongs to {}", role, flag, other));
    };
    if (p.do_remote_decode && options_.role == KvRole::kConsumer) {
      return refuse("kv_consumer", "do_remote_decode", "the prefill deployment");
    }
    if (p.do_remote_prefill && options_.role == KvRole::kProducer) {
      return refuse("kv_producer", "do_remote_prefill", "the decode deployment");
    }
    return {};
  }

  static PullSource source(const Entry& entry, int first_block) {
    const TransferParams& p = entry.params;
    const bool wait = p.remote_request_id.empty();
    return {p.remote_host, p.remote_port, p.remote_engine_id, p.key(), wait, p.num_readers, first_block};
  }

  void save(RequestId id, const Entry& entry, OfferNote::Kind kind, std::span<const BlockId> blocks, int num_tokens) {
    const auto written = blocks.first(std::min(blocks.size(), blocks_of(num_tokens)));
    actions_.saves.push_back(
        {id, 0, {written.begin(), written.end()}, num_tokens, 0, encode(OfferNote{kind, entry.key})});
  }

  PullSchedulerOptions options_;
  uint32_t instance_;
  std::unordered_map<RequestId, Entry> entries_;
  kv::KvActions actions_;
};

}  // namespace

std::unique_ptr<KvConnectorScheduler> make_pull_scheduler(PullSchedulerOptions options) {
  return std::make_unique<PullScheduler>(std::move(options));
}

}  // namespace manta::transfer
