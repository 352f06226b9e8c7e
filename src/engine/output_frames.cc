#include "engine/output_frames.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace manta::engine {
namespace {

// msgpack: a tag byte and the number.
constexpr size_t kNumberBytes = 5, kFixedBytes = 128;

size_t bytes_of(const sample::TokenLogprobs& row) {
  return kFixedBytes / 4 + kNumberBytes * (row.token_ids.size() + row.logprobs.size());
}

size_t bytes_of(const std::vector<sample::TokenLogprobs>& rows) {
  size_t sum = 0;
  for (const auto& row : rows) sum += bytes_of(row);
  return sum;
}

size_t bytes_of(const RequestOutput& out) {
  return kFixedBytes + kNumberBytes * out.tokens.size() + out.error_message.size() + out.kv_transfer_params.size() +
         bytes_of(out.logprobs) + bytes_of(out.prompt_logprobs);
}

class Cutter {
 public:
  Cutter(const Outputs& whole, size_t max_bytes) : step_(whole.step), load_(whole.load), max_bytes_(max_bytes) {
    frames_.push_back({step_, load_, {}});
  }

  void add(RequestOutput&& out) {
    size_t bytes = bytes_of(out);
    while (bytes > max_bytes_ && out.prompt_logprobs.size() > 1) {
      RequestOutput part = take_rows(out);
      const size_t taken = bytes_of(part.prompt_logprobs);
      bytes -= taken;
      append(std::move(part), kFixedBytes + taken);
    }
    append(std::move(out), bytes);
  }

  std::vector<Outputs> frames() { return std::move(frames_); }

 private:
  // An output of the first prompt_logprobs that fit; they are gone from `out`.
  RequestOutput take_rows(RequestOutput& out) const {
    RequestOutput part;
    part.id = out.id;
    part.num_cached_tokens = out.num_cached_tokens;
    auto end = out.prompt_logprobs.begin();
    for (size_t bytes = kFixedBytes; end != out.prompt_logprobs.end() && bytes + bytes_of(*end) <= max_bytes_; ++end) {
      bytes += bytes_of(*end);
    }
    end = std::max(end, std::next(out.prompt_logprobs.begin()));
    std::move(out.prompt_logprobs.begin(), end, std::back_inserter(part.prompt_logprobs));
    out.prompt_logprobs.erase(out.prompt_logprobs.begin(), end);
    return part;
  }

  void append(RequestOutput&& out, size_t bytes) {
    if (!frames_.back().requests.empty() && used_ + bytes > max_bytes_) {
      frames_.push_back({step_, load_, {}});
      used_ = 0;
    }
    used_ += bytes;
    frames_.back().requests.push_back(std::move(out));
  }

  StepId step_;
  Load load_;
  size_t max_bytes_, used_ = 0;
  std::vector<Outputs> frames_;
};

}  // namespace

std::vector<Outputs> split_outputs(Outputs outputs, size_t max_bytes) {
  Cutter cutter(outputs, max_bytes);
  for (RequestOutput& out : outputs.requests) cutter.add(std::move(out));
  return cutter.frames();
}

}  // namespace manta::engine
