// Which steps a device captures: those of decode rows alone, padded to a few sizes.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "base/log.h"
#include "exec/device_model.h"

namespace manta::exec {

void DeviceModel::choose_capture_sizes() {
  const int rows = options_.max_num_seqs * (1 + options_.num_speculative_tokens);
  const int most = std::min({rows, options_.max_num_batched_tokens, options_.max_capture_size});
  std::vector<int> sizes = options_.capture_sizes;
  if (sizes.empty()) {
    sizes = {1, 2, 4};
    for (int n = 8; n <= most; n += n < 128 ? 8 : n < 256 ? 16 : 32) sizes.push_back(n);
    if (sizes.back() < most) sizes.push_back(most);
  }
  std::sort(sizes.begin(), sizes.end());
  capture_sizes_.clear();
  for (int n : sizes) {
    if (n >= 1 && n <= most) capture_sizes_.push_back(n);
  }
}

std::optional<backend::GraphKey> DeviceModel::graph_key(const backend::StepInputs& inputs) const {
  if (capture_sizes_.empty() || hook_ != nullptr || inputs.num_microbatches > 1) return std::nullopt;
  int rows = 0;
  for (const backend::RowSlice& slice : inputs.slices) {
    if (slice.first_position >= 0) return std::nullopt;
    rows += slice.num_rows;
  }
  const int wanted = std::max({inputs.padded_num_tokens, rows, 1});
  const auto size = std::lower_bound(capture_sizes_.begin(), capture_sizes_.end(), wanted);
  if (size == capture_sizes_.end()) return std::nullopt;
  return backend::GraphKey{*size, 1};
}

// Every size once, with padding rows only: the first step that serves finds its graph.
Status DeviceModel::capture_steps() {
  if (!backend_->caps().can_capture) return {};
  choose_capture_sizes();
  if (!options_.capture_steps || options_.ep_size > 1 || hook_ != nullptr || capture_sizes_.empty()) return {};
  const auto begin = std::chrono::steady_clock::now();
  const size_t free_before = backend_->device_memory().free;
  for (auto size = capture_sizes_.rbegin(); size != capture_sizes_.rend(); ++size) {
    backend::StepInputs inputs;
    inputs.padded_num_tokens = *size;
    MANTA_TRY(run_once(inputs));  // eagerly
    MANTA_TRY(run_once(inputs));  // captured
  }
  const size_t taken = free_before - std::min(free_before, backend_->device_memory().free);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  info_.memory.push_back({"graphs", taken});
  spdlog::info("captured {} decode steps of {} to {} rows in {:.2f} s, {} bytes", capture_sizes_.size(),
               capture_sizes_.front(), capture_sizes_.back(), seconds, taken);
  return {};
}

Status DeviceModel::run_once(const backend::StepInputs& inputs) {
  const auto outputs = run(inputs, true);
  return outputs.ok() ? Status{} : Status(outputs.error());
}

}  // namespace manta::exec
