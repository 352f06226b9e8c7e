#include "transfer/lease_table.h"

#include <fmt/format.h>

#include <algorithm>

namespace manta::transfer {

void LeaseTable::offer(RequestId request, const std::string& key, std::span<const BlockId> blocks, int num_tokens,
                       bool final, Time now) {
  auto it = leases_.find(request);
  if (it == leases_.end()) {
    if (by_key_.contains(key)) {  // two prefills of one name: the second hands nothing over
      if (final) released_.push_back(request);
      return;
    }
    it = leases_.emplace(request, Lease{}).first;
    it->second.key = key;
    by_key_[key] = request;
    if (const auto gone = gone_.extract(key)) {
      it->second.num_expected = gone.mapped().num_expected;
      it->second.num_ended = gone.mapped().num_ended;
    }
  }
  Lease& lease = it->second;
  const bool grown = num_tokens > lease.num_tokens || (final && !lease.final);
  lease.blocks.assign(blocks.begin(), blocks.end());
  lease.num_tokens = num_tokens;
  if (final && !lease.final) {
    lease.final = true;
    lease.deadline = now + (lease.readers.empty() ? options_.unclaimed : options_.lease);
  }
  for (auto waiting = waiting_.begin(); waiting != waiting_.end();) {
    if (waiting->second.key != key) {
      ++waiting;
      continue;
    }
    attach(lease, waiting->first, waiting->second.num_readers, now);
    waiting = waiting_.erase(waiting);
  }
  if (grown) {
    for (const ReaderId reader : lease.readers) send_offer(lease, reader);
  }
  if (lease.final && lease.num_ended >= lease.num_expected) end(it, "");
}

void LeaseTable::restart(RequestId request) {
  const auto it = leases_.find(request);
  if (it == leases_.end()) return;
  Lease& lease = it->second;
  ++lease.generation;
  lease.blocks.clear();
  lease.num_tokens = 0;
  for (const ReaderId reader : lease.readers) send_offer(lease, reader);
}

void LeaseTable::withdraw(RequestId request, const std::string& reason) {
  const auto it = leases_.find(request);
  if (it != leases_.end()) end(it, reason);
}

void LeaseTable::open(ReaderId reader, const std::string& key, int num_readers, bool wait, Time now) {
  if (by_reader_.contains(reader) || waiting_.contains(reader)) return;
  const auto known = by_key_.find(key);
  if (known != by_key_.end()) return attach(leases_.at(known->second), reader, num_readers, now);
  if (!wait) {
    return refuse(reader, fmt::format("the hand-off {} has ended: it was fetched, cancelled or has expired", key));
  }
  waiting_[reader] = {key, num_readers, now + options_.rendezvous};
}

void LeaseTable::attach(Lease& lease, ReaderId reader, int num_readers, Time now) {
  lease.readers.insert(reader);
  lease.num_expected = std::max(lease.num_expected, num_readers);
  lease.deadline = now + options_.lease;
  by_reader_[reader] = by_key_.at(lease.key);
  send_offer(lease, reader);
}

void LeaseTable::send_offer(const Lease& lease, ReaderId reader) {
  messages_.push_back(
      {LeaseMessage::Kind::kOffer, reader, lease.generation, lease.blocks, lease.num_tokens, lease.final, ""});
}

void LeaseTable::refuse(ReaderId reader, std::string reason) {
  ++num_refused_;
  messages_.push_back({LeaseMessage::Kind::kRefused, reader, 0, {}, 0, false, std::move(reason)});
}

void LeaseTable::done(ReaderId reader, uint64_t generation, uint64_t num_bytes) {
  const auto known = by_reader_.find(reader);
  if (known == by_reader_.end()) return refuse(reader, "the lease ended before the reader was done");
  const Lease& lease = leases_.at(known->second);
  if (generation != lease.generation) return send_offer(lease, reader);  // of blocks that are gone: read again
  bytes_sent_ += num_bytes;
  messages_.push_back({LeaseMessage::Kind::kConfirmed, reader, generation, {}, 0, false, ""});
  end_reader(reader);
}

void LeaseTable::cancel(ReaderId reader, Time now) {
  if (const auto it = waiting_.find(reader); it != waiting_.end()) give_up_waiting(it, now);
  end_reader(reader);
}

// Remembered as long as the blocks would be kept for it otherwise: its prefill may still be on its way.
void LeaseTable::give_up_waiting(std::map<ReaderId, Waiting>::iterator it, Time now) {
  Gone& gone = gone_[it->second.key];
  gone.num_expected = std::max(gone.num_expected, it->second.num_readers);
  ++gone.num_ended;
  gone.deadline = now + options_.unclaimed;
  waiting_.erase(it);
}

void LeaseTable::end_reader(ReaderId reader) {
  const auto known = by_reader_.find(reader);
  if (known == by_reader_.end()) return;
  const auto it = leases_.find(known->second);
  by_reader_.erase(known);
  it->second.readers.erase(reader);
  ++it->second.num_ended;
  if (it->second.final && it->second.num_ended >= it->second.num_expected) end(it, "");
}

void LeaseTable::heard(uint64_t connection, Time now) {
  const auto first = by_reader_.lower_bound({connection, 0});
  for (auto it = first; it != by_reader_.end() && it->first.connection == connection; ++it) {
    leases_.at(it->second).deadline = now + options_.lease;
  }
}

void LeaseTable::connection_gone(uint64_t connection, Time now) {
  for (auto it = waiting_.lower_bound({connection, 0}); it != waiting_.end() && it->first.connection == connection;) {
    give_up_waiting(it++, now);
  }
  std::vector<ReaderId> readers;
  for (const auto& [reader, request] : by_reader_) {
    if (reader.connection == connection) readers.push_back(reader);
  }
  for (const ReaderId reader : readers) end_reader(reader);
}

void LeaseTable::advance(Time now) {
  std::vector<RequestId> late;
  for (const auto& [request, lease] : leases_) {
    // While its prefill runs only readers can be late; the request itself has its own clients to wait for it.
    if ((lease.final || !lease.readers.empty()) && lease.deadline <= now) late.push_back(request);
  }
  for (const RequestId request : late) {
    Lease& lease = leases_.at(request);
    ++num_expired_;
    if (lease.final) {
      end(leases_.find(request), fmt::format("the lease of {} expired", lease.key));
      continue;
    }
    for (const ReaderId reader : std::set<ReaderId>(lease.readers)) {
      refuse(reader, fmt::format("the lease of {} expired", lease.key));
      end_reader(reader);
    }
  }
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    if (it->second.deadline > now) {
      ++it;
      continue;
    }
    refuse(it->first,
           fmt::format("no prefill of the name {} came within {} ms", it->second.key, options_.rendezvous.count()));
    give_up_waiting(it++, now);
  }
  std::erase_if(gone_, [now](const auto& entry) { return entry.second.deadline <= now; });
}

void LeaseTable::end(Leases::iterator it, const std::string& reason) {
  for (const ReaderId reader : it->second.readers) {
    by_reader_.erase(reader);
    refuse(reader, reason.empty() ? "the lease ended" : reason);
  }
  if (it->second.final) released_.push_back(it->first);
  by_key_.erase(it->second.key);
  leases_.erase(it);
}

}  // namespace manta::transfer
