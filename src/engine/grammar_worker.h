// Compiles the grammars of structured-output requests beside the engine's loop: a hard schema takes a tenth of a
// second, and no step may wait for it.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "base/result.h"
#include "engine/messages.h"
#include "sample/grammar.h"

namespace manta::engine {

using MakeGrammarCompiler = std::function<Result<std::unique_ptr<sample::GrammarCompiler>>()>;
using GrammarResult = Result<std::shared_ptr<sample::GrammarMatcher>>;

class GrammarWorker {
 public:
  // done(submit, result) runs on the worker's thread.
  using Done = std::function<void(Submit&& submit, GrammarResult&& result)>;

  // make_compiler runs on the worker's thread before the first grammar: it reads a vocabulary, which most engines never
  // need. Null: every grammar is refused.
  GrammarWorker(MakeGrammarCompiler make_compiler, Done done);
  ~GrammarWorker();  // finishes the compilation it is in, drops the rest
  GrammarWorker(const GrammarWorker&) = delete;
  GrammarWorker& operator=(const GrammarWorker&) = delete;

  void compile(Submit submit);  // any thread, never waits
  void forget(RequestId id);    // likewise; a compilation under way is finished

 private:
  void run();
  GrammarResult make_matcher(const sample::GrammarSpec& spec);

  MakeGrammarCompiler make_compiler_;
  std::unique_ptr<sample::GrammarCompiler> compiler_;  // worker's thread only
  Done done_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Submit> queue_;  // under mutex_
  bool stopping_ = false;     // under mutex_
  std::thread thread_;
};

}  // namespace manta::engine
