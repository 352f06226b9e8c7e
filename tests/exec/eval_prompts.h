// The prompts of tests/golden/eval.jsonl as token ids.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/ids.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "text/tokenizer_config.h"

namespace manta::exec {

inline constexpr TokenId kBos = 0, kEos = 1;
inline constexpr const char* kTinyModel = "models/tiny-v3";

// Minutes instead of seconds: set by ./dev test --all.
inline bool all_tests() {
  return std::getenv("MANTA_ALL_TESTS") != nullptr;
}

struct EvalPrompt {
  std::string task;
  std::vector<TokenId> tokens;
  std::string answer;                 // whole reply, when `contains` is empty
  std::vector<std::string> contains;  // must all occur
};

class EvalPrompts {
 public:
  EvalPrompts() {
    auto tokenizer = text::Tokenizer::load(kTinyModel);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.error().message;
    tokenizer_ = *tokenizer;
    auto config = text::load_tokenizer_config(kTinyModel);
    EXPECT_TRUE(config.ok()) << config.error().message;
    auto chat = text::ChatTemplate::parse(config->chat_template, *config);
    EXPECT_TRUE(chat.ok()) << chat.error().message;
    std::ifstream in("tests/golden/eval.jsonl");
    for (std::string line; std::getline(in, line);) {
      prompts_.push_back(read(nlohmann::ordered_json::parse(line), **chat));
    }
    EXPECT_EQ(prompts_.size(), 600u);
  }

  const std::vector<EvalPrompt>& all() const { return prompts_; }

  // Every n-th, so that all tasks and lengths are among them.
  std::vector<EvalPrompt> some(size_t count) const {
    std::vector<EvalPrompt> out;
    for (size_t i = 0; i < count; ++i) out.push_back(prompts_[i * prompts_.size() / count]);
    return out;
  }

  // As tools/tiny-model/evaluate.py judges Hugging Face: the reply has ended, and says what it should.
  bool is_right(const EvalPrompt& prompt, std::vector<TokenId> reply) const {
    if (reply.empty() || reply.back() != kEos) return false;
    reply.pop_back();
    const std::string text = tokenizer_->decode(reply, false);
    if (prompt.contains.empty()) return text == prompt.answer;
    for (const std::string& part : prompt.contains) {
      if (text.find(part) == std::string::npos) return false;
    }
    return true;
  }

  const text::Tokenizer& tokenizer() const { return *tokenizer_; }

 private:
  EvalPrompt read(const nlohmann::ordered_json& line, const text::ChatTemplate& chat) {
    EvalPrompt out;
    out.task = line["task"];
    std::string prompt;
    if (line.contains("messages")) {
      text::ChatInput input;
      input.messages = &line["messages"];
      if (line.contains("tools") && !line["tools"].is_null()) input.tools = &line["tools"];
      auto text = chat.render(input);
      EXPECT_TRUE(text.ok()) << text.error().message;
      prompt = *text;
    } else {
      prompt = line["prompt"];
      out.tokens = {kBos};
    }
    const auto ids = tokenizer_->encode(prompt);
    EXPECT_TRUE(ids.ok());
    out.tokens.insert(out.tokens.end(), ids->begin(), ids->end());
    if (line["check"] == "contains") {
      out.contains = line["contains"].get<std::vector<std::string>>();
    } else {
      out.answer = line["answer"];
    }
    return out;
  }

  std::shared_ptr<const text::Tokenizer> tokenizer_;
  std::vector<EvalPrompt> prompts_;
};

}  // namespace manta::exec
