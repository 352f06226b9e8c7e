#include "transfer/mover_thread.h"

#include <utility>

namespace manta::transfer {

MoverThread::MoverThread(BlockMover& mover, Done done)
    : mover_(mover), done_(std::move(done)), thread_([this](std::stop_token stop) { run(stop); }) {}

MoverThread::~MoverThread() = default;

void MoverThread::submit(Job job) {
  {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
  }
  wake_.notify_one();
}

void MoverThread::run(std::stop_token stop) {
  constexpr auto kLook = std::chrono::microseconds(100);
  while (!stop.stop_requested()) {
    std::vector<Job> jobs;
    {
      std::unique_lock lock(mutex_);
      const auto has_jobs = [this] { return !jobs_.empty(); };
      if (running_.empty()) {
        wake_.wait(lock, stop, has_jobs);
      } else {
        wake_.wait_for(lock, stop, kLook, has_jobs);
      }
      jobs.swap(jobs_);
    }
    for (Job& job : jobs) begin(std::move(job));
    poll();
  }
  running_.clear();
}

void MoverThread::begin(Job job) {
  MoverPeer& peer = *job.peer;
  if (peer.cache == nullptr) {
    auto opened = mover_.open(peer.metadata, peer.num_blocks);
    if (!opened.ok()) return done_(job.id, opened.error(), 0);
    peer.cache = std::move(*opened);
  }
  auto transfer = mover_.read(*peer.cache, coalesce(job.blocks));
  if (!transfer.ok()) return done_(job.id, transfer.error(), 0);
  running_.push_back({std::move(job), std::move(*transfer)});
}

void MoverThread::poll() {
  for (size_t i = 0; i < running_.size();) {
    const std::optional<Status> status = running_[i].transfer->poll();
    if (!status) {
      ++i;
      continue;
    }
    Running over = std::move(running_[i]);
    running_.erase(running_.begin() + static_cast<ptrdiff_t>(i));
    over.transfer = nullptr;  // nothing writes from here on
    done_(over.job.id, *status, over.job.blocks.size());
  }
}

}  // namespace manta::transfer
