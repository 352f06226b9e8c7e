#include "transfer/pull_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/pack.h"

namespace manta::transfer {

static auto fields(PullSource& s) {
  return std::tie(s.host, s.port, s.engine_id, s.key, s.wait, s.num_readers, s.first_block);
}
std::string encode(const PullSource& source) {
  return pack_message(source);
}
Result<PullSource> decode_pull_source(std::string_view bytes) {
  return unpack_message<PullSource>(bytes, "pull source");
}

PullTable::Pulls::iterator PullTable::find(RequestId request) {
  const auto it = by_request_.find(request);
  return it == by_request_.end() ? pulls_.end() : pulls_.find(it->second);
}

void PullTable::send(Send::Kind kind, uint64_t id, const Pull& pull) {
  sends_.push_back({kind, id, pull.source, pull.generation, pull.num_bytes});
}

void PullTable::open(RequestId request, PullSource source) {
  if (by_request_.contains(request)) return;
  const uint64_t id = next_pull_++;
  by_request_[request] = id;
  Pull& pull = pulls_[id];
  pull.request = request;
  pull.source = std::move(source);
  send(Send::Kind::kOpen, id, pull);
}

void PullTable::load(RequestId request, PullSource source, std::vector<BlockId> blocks, int num_tokens) {
  auto it = find(request);
  if (it == pulls_.end()) {  // refused while it waited, or never opened
    open(request, source);
    it = find(request);
  }
  Pull& pull = it->second;
  pull.source = std::move(source);
  pull.local = std::move(blocks);
  pull.num_wanted = num_tokens;
  pull.loading = true;
  advance(it);
}

void PullTable::cancel(RequestId request) {
  const auto it = find(request);
  if (it != pulls_.end() && !it->second.ended) fail(it, "cancelled", true);
}

void PullTable::on_message(const std::string& peer, const LeaseMessage& m, int num_remote_blocks) {
  const auto it = pulls_.find(m.reader.pull);
  if (it == pulls_.end() || it->second.ended || it->second.source.peer() != peer) return;
  Pull& pull = it->second;
  if (m.kind == LeaseMessage::Kind::kRefused) return fail(it, m.reason, false);
  if (m.kind == LeaseMessage::Kind::kConfirmed) {
    if (!pull.confirming || m.generation != pull.generation) return fail(it, "confirmed without being asked", true);
    return finish(it);
  }
  if (m.generation < pull.generation || (m.generation == pull.generation && m.num_tokens < pull.num_offered)) return;
  const auto wrong = std::ranges::find_if(m.blocks, [&](BlockId b) { return b < 0 || b >= num_remote_blocks; });
  const auto num_rows = static_cast<int64_t>(m.blocks.size()) * block_size_;
  if (wrong != m.blocks.end() || m.num_tokens < 0 || m.num_tokens > num_rows) {
    return fail(it,
                fmt::format("{} offers {} tokens in {} blocks, of {} it has", peer, m.num_tokens, m.blocks.size(),
                            num_remote_blocks),
                true);
  }
  if (m.generation != pull.generation) {
    pull.generation = m.generation;
    pull.num_read_blocks = 0;
    pull.num_bytes = 0;
    pull.void_read = pull.reading;
    pull.confirming = false;
  }
  pull.remote = m.blocks;
  pull.num_offered = m.num_tokens;
  pull.final = m.final;
  advance(it);
}

// Whole blocks while the offer grows; the last, partly filled one when nothing more will come into it that is wanted.
void PullTable::advance(Pulls::iterator it) {
  Pull& pull = it->second;
  if (!pull.loading || pull.reading || pull.confirming || pull.ended || pull.generation == 0) return;
  const bool complete = pull.final || pull.num_offered >= pull.num_wanted;
  const int num_tokens = std::min(pull.num_offered, pull.num_wanted);
  const int end = complete ? (num_tokens + block_size_ - 1) / block_size_ : num_tokens / block_size_;
  const int first = pull.source.first_block + pull.num_read_blocks;
  if (first < end) {
    Read read{it->first, pull.source.peer(), {}};
    for (int i = first; i < end; ++i) read.blocks.push_back({pull.remote[i], pull.local[i - pull.source.first_block]});
    pull.reading = true;
    pull.num_read_blocks += end - first;
    reads_.push_back(std::move(read));
  } else if (complete) {
    pull.confirming = true;
    send(Send::Kind::kDone, it->first, pull);
  }
}

void PullTable::on_read(uint64_t id, const Status& status, uint64_t num_bytes) {
  const auto it = pulls_.find(id);
  if (it == pulls_.end()) return;
  Pull& pull = it->second;
  pull.reading = false;
  if (pull.ended) return finish(it);
  if (std::exchange(pull.void_read, false)) return advance(it);
  if (!status.ok()) return fail(it, status.error().message, true);
  pull.num_bytes += num_bytes;
  advance(it);
}

void PullTable::on_peer_lost(const std::string& peer, const std::string& reason) {
  std::vector<uint64_t> lost;
  for (const auto& [id, pull] : pulls_) {
    if (pull.source.peer() == peer && !pull.ended) lost.push_back(id);
  }
  for (const uint64_t id : lost) fail(pulls_.find(id), reason, false);
}

void PullTable::fail(Pulls::iterator it, std::string reason, bool tell_owner) {
  Pull& pull = it->second;
  if (tell_owner) send(Send::Kind::kCancel, it->first, pull);
  pull.ended = true;
  pull.reason = std::move(reason);
  if (!pull.reading) finish(it);
}

void PullTable::finish(Pulls::iterator it) {
  Pull& pull = it->second;
  const int num_valid = std::min(pull.num_offered, pull.num_wanted);
  if (!pull.loading) {
    // The scheduler does not wait for it yet. A refusal is found again when it asks for the load.
  } else if (pull.ended) {
    ++num_failed_;
    progress_.failed.push_back({pull.request, pull.source.first_block * block_size_, pull.reason});
  } else if (num_valid < pull.num_wanted) {
    progress_.failed.push_back({pull.request, std::max(num_valid, pull.source.first_block * block_size_), ""});
  } else {
    progress_.received.push_back(pull.request);
  }
  if (!pull.ended) bytes_received_ += pull.num_bytes;
  by_request_.erase(pull.request);
  pulls_.erase(it);
}

bool PullTable::uses(const std::string& peer) const {
  return std::ranges::any_of(pulls_, [&](const auto& entry) { return entry.second.source.peer() == peer; });
}

}  // namespace manta::transfer
