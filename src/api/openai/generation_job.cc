#include "api/openai/generation_job.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "api/relay/relayed.h"
#include "base/log.h"

namespace manta::api {

using engine::FinishReason;
using Clock = std::chrono::steady_clock;

namespace {

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

Ending ending_of(FinishReason finish) {
  switch (finish) {
    case FinishReason::kStop: return Ending::kStop;
    case FinishReason::kLength: return Ending::kLength;
    case FinishReason::kNone:
    case FinishReason::kAbort: return Ending::kAbort;
    case FinishReason::kError: break;
  }
  return Ending::kError;
}

}  // namespace

void GenerationJob::start(const LoopContext& context, ResponseWriterPtr writer, Prepared request,
                          Admission::Ticket ticket, const MakeAnswer& make_answer, Clock::time_point arrived) {
  auto job =
      std::make_shared<GenerationJob>(context, std::move(writer), std::move(request), std::move(ticket), arrived);
  job->answer_ = make_answer(job->request_, context);
  if (const Problem problem = job->submit_all()) {
    job->abort_rest();
    job->writer_->send(problem->response());
    return;
  }
  if (job->num_finished_ == job->sequences_.size()) return job->finish();  // another process had made all of it
  job->self_ = job;
  job->writer_->on_gone([weak = std::weak_ptr(job)] {
    if (const auto locked = weak.lock()) locked->on_gone();
  });
}

GenerationJob::GenerationJob(const LoopContext& context, ResponseWriterPtr writer, Prepared request,
                             Admission::Ticket ticket, Clock::time_point arrived)
    : context_(context),
      writer_(std::move(writer)),
      request_(std::move(request)),
      arrived_(arrived),
      ticket_(std::move(ticket)) {}

Problem GenerationJob::admit(const LoopContext& context, int64_t num_sequences, Admission::Ticket& ticket) {
  ticket = context.admission.try_admit(num_sequences);
  if (ticket) return {};
  context.shard.admission_rejections[static_cast<size_t>(Rejection::kQueueFull)].add(1);
  return overloaded(
      fmt::format("The server's queue is full: {} requests wait or run, this one brings {}, at most {} "
                  "(--max-num-queued-reqs). Retry later.",
                  context.admission.num_admitted(), num_sequences, context.admission.limit()));
}

Problem GenerationJob::submit_all() {
  for (size_t prompt_idx = 0; prompt_idx < request_.prompts.size(); ++prompt_idx) {
    for (int64_t i = 0; i < request_.n; ++i) {
      const int index = static_cast<int>(sequences_.size());
      auto& sequence =
          *sequences_.emplace_back(std::make_unique<Sequence>(request_, context_.model, index, prompt_idx));
      if (const Delivered* delivered = delivered_of(sequence)) replay(sequence, *delivered);
      if (sequence.finished()) continue;
      auto id = context_.generator.submit(
          make_submit(sequence, seed_of(sequence, i)),
          // Two plain pointers: std::function keeps them without allocating. end() aborts what is still running, so
          // nothing is called after the job.
          [this, &sequence](engine::RequestOutput&& output) { on_output(sequence, std::move(output)); },
          request_.data_parallel_rank);
      if (!id.ok()) return from_error(id.error());
      sequence.id = *id;
      sequence.submitted = true;
      sequence.rank = context_.generator.rank_of(*id).value_or(0);
      if (context_.settings.enable_log_requests) log_request(sequence);
    }
  }
  return {};
}

// With a seed of the request's own its answers are seed, seed + 1, …; equal prompts then give equal answers.
uint64_t GenerationJob::seed_of(const Sequence& sequence, int64_t i) const {
  if (request_.has_seed) return request_.sampling.seed + static_cast<uint64_t>(i);
  if (request_.relayed) return request_.relayed->seed + static_cast<uint64_t>(sequence.index());
  return context_.random();
}

const Delivered* GenerationJob::delivered_of(const Sequence& sequence) const {
  const auto index = static_cast<size_t>(sequence.index());
  if (!request_.relayed || request_.relayed->delivered.size() <= index) return nullptr;
  return &request_.relayed->delivered[index];
}

// Brings the sequence to where another process left it: the same tokens through the same parsers, the text thrown
// away because the client has it.
void GenerationJob::replay(Sequence& sequence, const Delivered& delivered) {
  engine::RequestOutput output;
  output.tokens = delivered.tokens;
  sequence.take(output);
  if (delivered.finished && !sequence.finished()) {
    output.tokens.clear();
    output.finish = FinishReason::kStop;
    sequence.take(output);
  }
  if (sequence.finished()) ++num_finished_;
  if (delivered.tokens.empty()) return;
  std::string discarded;
  answer_->write_begin(sequence, discarded);
  answer_->write_pending(sequence, discarded);
  sequence.begun = true;
  sequence.clear_pending();
}

void GenerationJob::log_request(const Sequence& sequence) const {
  const Prompt& prompt = request_.prompts[sequence.prompt_idx()];
  const sample::SamplingParams& p = request_.sampling;
  spdlog::info(
      "{} as {}: {} prompt tokens, at most {} more; temperature {}, top_p {}, top_k {}, {} stop strings, "
      "grammar {}, stream {}",
      request_.id, to_string(sequence.id), prompt.ids.size(), prompt.max_tokens, p.temperature, p.top_p, p.top_k,
      request_.stop ? request_.stop->strings().size() : 0, p.grammar.kind != sample::GrammarKind::kNone,
      request_.stream);
}

engine::Submit GenerationJob::make_submit(const Sequence& sequence, uint64_t seed) const {
  const Prompt& prompt = request_.prompts[sequence.prompt_idx()];
  engine::Submit submit;
  submit.tokens = prompt.ids;
  if (const Delivered* delivered = delivered_of(sequence)) {
    submit.tokens.insert(submit.tokens.end(), delivered->tokens.begin(), delivered->tokens.end());
  }
  submit.num_prompt_tokens = static_cast<int32_t>(prompt.ids.size());
  submit.sampling = request_.sampling;
  submit.sampling.seed = seed;
  submit.sampling.max_tokens = prompt.max_tokens;
  submit.sampling.min_tokens = std::min(submit.sampling.min_tokens, prompt.max_tokens);
  submit.priority = request_.priority;
  submit.cache_salt = request_.cache_salt;
  submit.kv_transfer_params = request_.kv_transfer_params;
  if (request_.relayed && !request_.relayed->transfer_id.empty()) {
    submit.kv_transfer_params = fmt::format("{{\"transfer_id\":\"{}-{}\",{}", request_.relayed->transfer_id,
                                            sequence.index(), request_.relayed->kv_transfer_params.substr(1));
  }
  return submit;
}

void GenerationJob::on_output(Sequence& sequence, engine::RequestOutput&& output) {
  if (ended_ || sequence.finished()) return;
  if (output.rank >= 0) sequence.rank = output.rank;
  if (output.finish == FinishReason::kError) {
    sequence.submitted = false;
    return fail(from_error(Error{output.error_code, std::move(output.error_message)}));
  }
  const size_t num_new_tokens = output.tokens.size();
  if (sequence.take(output)) context_.generator.abort(sequence.id);
  if (sequence.finished()) sequence.submitted = false;
  count(sequence, output, num_new_tokens);
  if (request_.stream) stream(sequence);
  if (!sequence.finished()) return;
  count_end(sequence);
  if (++num_finished_ == sequences_.size()) finish();
}

void GenerationJob::stream(Sequence& sequence) {
  const auto num_pending = static_cast<int64_t>(sequence.tokens().size());
  // The first tokens go out as they come, the rest in groups of stream_interval.
  const bool due =
      sequence.finished() || (num_pending > 0 && (!sequence.begun || num_pending >= request_.stream_interval));
  if (!due) return;
  if (!std::exchange(streaming_, true)) writer_->begin_stream({});
  std::string& out = writer_->body();
  if (!sequence.begun) answer_->write_begin(sequence, out);
  answer_->write_pending(sequence, out);
  writer_->note_tokens(sequence.index(), sequence.tokens(), sequence.finished());
  sequence.begun = true;
  sequence.clear_pending();
  writer_->commit();
}

void GenerationJob::finish() {
  if (request_.stream) {
    answer_->write_end(sequences_, writer_->body());
    writer_->commit();
    writer_->end_stream();
  } else {
    writer_->send({.body = answer_->body(sequences_)});
  }
  end();
}

// Before the first event the client gets a proper status; after it, an event.
void GenerationJob::fail(const ApiError& problem) {
  count_cut_off(Ending::kError);
  abort_rest();
  if (streaming_) {
    std::string& out = writer_->body();
    out += "data: " + problem.json() + "\n\ndata: [DONE]\n\n";
    writer_->commit();
    writer_->end_stream();
  } else {
    writer_->send(problem.response());
  }
  end();
}

void GenerationJob::on_gone() {
  if (ended_) return;
  count_cut_off(Ending::kAbort);
  abort_rest();
  end();
}

void GenerationJob::abort_rest() {
  for (const auto& sequence : sequences_) {
    if (std::exchange(sequence->submitted, false)) context_.generator.abort(sequence->id);
  }
}

void GenerationJob::end() {
  ended_ = true;
  ticket_ = {};
  const auto last = std::move(self_);  // may destroy this on the way out
}

void GenerationJob::count(Sequence& sequence, const engine::RequestOutput& output, size_t num_new_tokens) {
  if (num_new_tokens == 0) return;
  const auto now = Clock::now();
  EngineCounters& counted = counters(sequence);
  counted.generation_tokens.add(num_new_tokens);
  if (sequence.first_output == Clock::time_point{}) {
    const auto num_prompt_tokens = request_.prompts[sequence.prompt_idx()].ids.size();
    counted.prompt_tokens.add(num_prompt_tokens);
    counted.prompt_tokens_cached.add(static_cast<uint64_t>(sequence.num_cached_tokens()));
    counted.time_to_first_token.observe(seconds_between(arrived_, now));
    if (output.queue_us >= 0) counted.queue_time.observe(static_cast<double>(output.queue_us) * 1e-6);
    sequence.prefill_us = std::max<int64_t>(0, output.prefill_us);
    sequence.first_output = now;
  } else {
    counted.inter_token_latency.observe(seconds_between(sequence.last_output, now));
  }
  sequence.last_output = now;
}

void GenerationJob::count_end(const Sequence& sequence) {
  EngineCounters& counted = counters(sequence);
  const Prompt& prompt = request_.prompts[sequence.prompt_idx()];
  counted.request_success[static_cast<size_t>(ending_of(sequence.finish()))].add(1);
  counted.request_prompt_tokens.observe(static_cast<double>(prompt.ids.size()));
  counted.request_generation_tokens.observe(static_cast<double>(sequence.num_generated()));
  counted.request_max_num_generation_tokens.observe(static_cast<double>(sequence.num_generated()));
  counted.request_params_n.observe(static_cast<double>(request_.n));
  counted.request_params_max_tokens.observe(static_cast<double>(prompt.max_tokens));
  counted.e2e_request_latency.observe(seconds_between(arrived_, Clock::now()));
  if (sequence.num_generated() == 0) return;
  const double prefill = static_cast<double>(sequence.prefill_us) * 1e-6;
  const double decode = seconds_between(sequence.first_output, sequence.last_output);
  counted.prefill_time.observe(prefill);
  counted.decode_time.observe(decode);
  counted.inference_time.observe(prefill + decode);
  if (sequence.num_generated() > 1) {
    counted.time_per_output_token.observe(decode / static_cast<double>(sequence.num_generated() - 1));
  }
}

// The whole request ends at once: its sequences that still run, or one if none does.
void GenerationJob::count_cut_off(Ending ending) {
  size_t num_cut_off = 0;
  for (const auto& sequence : sequences_) {
    if (sequence->finished()) continue;
    counters(*sequence).request_success[static_cast<size_t>(ending)].add(1);
    ++num_cut_off;
  }
  if (num_cut_off == 0) counters(*sequences_.front()).request_success[static_cast<size_t>(ending)].add(1);
}

}  // namespace manta::api
