// Turns a conversation into the prompt text a model was trained on, by the chat template of its checkpoint: the same
// text as transformers' apply_chat_template(tokenize=False). Immutable, shared by all event loops.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "text/jinja_program.h"
#include "text/tokenizer_config.h"

namespace manta::text {

// Pointers are borrowed for the call; null: not given.
struct ChatInput {
  const nlohmann::ordered_json* messages = nullptr;   // a list of {"role", "content", …}; needed
  const nlohmann::ordered_json* tools = nullptr;      // a list
  const nlohmann::ordered_json* documents = nullptr;  // a list
  const nlohmann::ordered_json* kwargs = nullptr;     // an object: chat_template_kwargs, more variables
  bool add_generation_prompt = true;
  bool continue_final_message = false;  // the last message is left open, to be continued
};

class ChatTemplate {
 public:
  // tokens: bos_token, eos_token and pad_token become variables where they are set.
  static Result<std::shared_ptr<const ChatTemplate>> parse(const std::string& source, const TokenizerConfig& tokens);

  // kInvalidArgument with a message for the client: the template refused the conversation, or an input has a wrong
  // type. A tool call's "arguments" given as JSON text are handed over as an object where the template wants one
  // (DeepSeek-V3.1 does, -V3 does not), found out by trying both once when it is parsed.
  Result<std::string> render(const ChatInput& input) const;

  const std::string& source() const { return source_; }
  // A message with tool calls shows them only when its content is none (DeepSeek-V3 and R1 of the first days).
  bool wants_null_content() const { return wants_null_content_; }

 private:
  ChatTemplate() = default;
  Result<std::string> render_messages(const nlohmann::ordered_json& messages, const ChatInput& input) const;
  Result<std::string> render_open(nlohmann::ordered_json messages, const ChatInput& input) const;
  bool probe_object_arguments() const;
  bool probe_null_content() const;

  std::string source_;
  std::vector<std::pair<std::string, std::string>> special_tokens_;  // variables of every render
  JinjaProgram program_;
  bool wants_object_arguments_ = false;
  bool wants_null_content_ = false;
};

// What --chat-template and the request field chat_template may hold: the name of a file, or the template itself
// (anything with a brace or a line end in it that is not the name of a file).
Result<std::string> load_chat_template(const std::string& file_or_text);

}  // namespace manta::text
