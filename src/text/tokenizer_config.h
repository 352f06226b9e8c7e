// What tokenizer_config.json adds to tokenizer.json: the names of the special tokens, whether BOS and EOS are put
// around a prompt, and the chat template.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace manta::text {

struct TokenizerConfig {
  std::string tokenizer_class;
  std::string bos_token, eos_token, pad_token;  // empty: none
  std::optional<bool> add_bos_token, add_eos_token;
  std::string chat_template;  // empty: none. Of a list of named templates, the one named "default".
};

Result<TokenizerConfig> parse_tokenizer_config(std::string_view json);

// Reads model_dir/tokenizer_config.json; a chat_template.jinja beside it wins over the template inside, as in
// transformers. kNotFound when there is no tokenizer_config.json.
Result<TokenizerConfig> load_tokenizer_config(const std::string& model_dir);

}  // namespace manta::text
