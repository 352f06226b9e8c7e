// One client request on its way: submits its sequences, feeds what comes back to the answer, and ends when all have
// finished, one has failed, or the client is gone. It keeps itself alive until then.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "api/http/message.h"
#include "api/loop_context.h"
#include "api/openai/answer.h"
#include "api/openai/prepare.h"
#include "api/openai/sequence.h"

namespace manta::api {

struct Delivered;

class GenerationJob : public std::enable_shared_from_this<GenerationJob> {
 public:
  using MakeAnswer = std::function<std::unique_ptr<Answer>(const Prepared& request, const LoopContext& context)>;

  // Answers through writer: tokens, or an error. arrived: when the request's last byte was read. ticket: of its
  // sequences, see admit().
  static void start(const LoopContext& context, ResponseWriterPtr writer, Prepared request, Admission::Ticket ticket,
                    const MakeAnswer& make_answer, std::chrono::steady_clock::time_point arrived);
  // Places for the sequences of a request, or the answer that there are none. Before anything dear is done for it.
  static Problem admit(const LoopContext& context, int64_t num_sequences, Admission::Ticket& ticket);

  GenerationJob(const LoopContext& context, ResponseWriterPtr writer, Prepared request, Admission::Ticket ticket,
                std::chrono::steady_clock::time_point arrived);
  GenerationJob(const GenerationJob&) = delete;
  GenerationJob& operator=(const GenerationJob&) = delete;

 private:
  Problem submit_all();
  void log_request(const Sequence& sequence) const;
  engine::Submit make_submit(const Sequence& sequence, uint64_t seed) const;
  uint64_t seed_of(const Sequence& sequence, int64_t i) const;
  const Delivered* delivered_of(const Sequence& sequence) const;
  void replay(Sequence& sequence, const Delivered& delivered);
  void on_output(Sequence& sequence, engine::RequestOutput&& output);
  void stream(Sequence& sequence);
  void finish();
  void fail(const ApiError& problem);
  void on_gone();
  void abort_rest();
  void end();
  void count(Sequence& sequence, const engine::RequestOutput& output, size_t num_new_tokens);
  void count_cut_off(Ending ending);
  void count_end(const Sequence& sequence);
  EngineCounters& counters(const Sequence& sequence) { return context_.shard.of(sequence.rank); }

  const LoopContext& context_;
  ResponseWriterPtr writer_;
  const Prepared request_;
  const std::chrono::steady_clock::time_point arrived_;
  std::unique_ptr<Answer> answer_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  Admission::Ticket ticket_;
  size_t num_finished_ = 0;
  bool streaming_ = false;
  bool ended_ = false;
  std::shared_ptr<GenerationJob> self_;  // until end(): nobody else owns it
};

}  // namespace manta::api
