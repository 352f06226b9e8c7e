#include "engine/grammar_worker.h"

#include <utility>

#include "sample/after_token.h"

namespace manta::engine {

GrammarWorker::GrammarWorker(MakeGrammarCompiler make_compiler, Done done)
    : make_compiler_(std::move(make_compiler)), done_(std::move(done)), thread_([this] { run(); }) {}

GrammarWorker::~GrammarWorker() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void GrammarWorker::compile(Submit submit) {
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(submit));
  }
  wake_.notify_one();
}

void GrammarWorker::forget(RequestId id) {
  const std::lock_guard lock(mutex_);
  std::erase_if(queue_, [id](const Submit& submit) { return submit.id == id; });
}

void GrammarWorker::run() {
  while (true) {
    Submit submit;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (stopping_) return;
      submit = std::move(queue_.front());
      queue_.pop_front();
    }
    GrammarResult result = make_matcher(submit.sampling.grammar);
    done_(std::move(submit), std::move(result));
  }
}

GrammarResult GrammarWorker::make_matcher(const sample::GrammarSpec& spec) {
  if (!make_compiler_) {
    return error(ErrorCode::kUnimplemented, "structured outputs need a tokenizer; this engine has none");
  }
  if (!compiler_) {
    MANTA_ASSIGN(compiler_, make_compiler_());
  }
  MANTA_ASSIGN(const auto compiled, compiler_->compile(spec));
  auto matcher = compiled->make_matcher();
  if (spec.after_token >= 0) matcher = sample::after_token(spec.after_token, std::move(matcher));
  return std::shared_ptr<sample::GrammarMatcher>(std::move(matcher));
}

}  // namespace manta::engine
