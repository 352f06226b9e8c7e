#include "sample/grammar.h"

#include <dlpack/dlpack.h>
#include <fmt/format.h>
#include <xgrammar/xgrammar.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

namespace manta::sample {
namespace {

Error invalid(std::string message) {
  return error(ErrorCode::kInvalidArgument, std::move(message));
}

// "[09:11:42] ../cpp/file.cc:83: Check failed: (…) is false: What is wrong" -> "What is wrong"
std::string reason_of(const std::exception& thrown) {
  std::string_view text = thrown.what();
  if (text.starts_with('[')) {
    const size_t place = text.find(".cc:");
    const size_t colon = place == text.npos ? text.npos : text.find(": ", place);
    if (colon != text.npos) text.remove_prefix(colon + 2);
  }
  constexpr std::string_view kFailed = " is false: ";
  if (text.starts_with("Check failed: ")) {
    const size_t at = text.find(kFailed);
    if (at != text.npos) text.remove_prefix(at + kFailed.size());
  }
  while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  return std::string(text);
}

// The deepest nesting of brackets. In JSON those inside strings do not count; elsewhere all do, which errs on the
// safe side.
int nesting_of(std::string_view text, bool is_json) {
  int depth = 0, deepest = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\\') {
      ++i;
    } else if (c == '"' && is_json) {
      quoted = !quoted;
    } else if (quoted) {
      continue;
    } else if (c == '(' || c == '[' || c == '{') {
      deepest = std::max(deepest, ++depth);
    } else if (c == ')' || c == ']' || c == '}') {
      depth = std::max(0, depth - 1);
    }
  }
  return deepest;
}

// The first \x… or \U… of more digits than any character has (U+10FFFF); empty: none. xgrammar reads as many as there
// are and overflows.
std::string_view overlong_escape(std::string_view text) {
  constexpr std::string_view kHexDigits = "0123456789abcdefABCDEF";
  constexpr size_t kMaxDigits = 6;
  for (size_t at = 0; (at = text.find('\\', at)) != text.npos && at + 1 < text.size(); ++at) {
    if (text[at + 1] != 'x' && text[at + 1] != 'U') continue;
    const size_t end = std::min(text.find_first_not_of(kHexDigits, at + 2), text.size());
    const size_t begin = std::min(text.find_first_not_of('0', at + 2), end);
    const size_t read = text[at + 1] == 'x' ? end : std::min(end, at + 2 + 8);
    if (read > begin + kMaxDigits) return text.substr(at, std::min<size_t>(end - at, 16));
  }
  return {};
}

bool is_json(GrammarKind kind) {
  return kind == GrammarKind::kJsonSchema || kind == GrammarKind::kChoice || kind == GrammarKind::kStructuralTag;
}

std::string quoted_for_ebnf(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\u{:04x}", byte);
    } else {
      out += c;
    }
  }
  return out + "\"";
}

Result<std::string> ebnf_of_choices(const std::string& text) {
  const auto choices = nlohmann::json::parse(text, nullptr, false);
  if (!choices.is_array() || choices.empty()) return invalid("choice: must be a JSON array of at least one string");
  std::string ebnf = "root ::= ";
  for (size_t i = 0; i < choices.size(); ++i) {
    if (!choices[i].is_string()) return invalid(fmt::format("choice: entry {} is not a string", i));
    ebnf += (i ? " | " : "") + quoted_for_ebnf(choices[i].get<std::string>());
  }
  return ebnf;
}

class XGrammarMatcher : public GrammarMatcher {
 public:
  explicit XGrammarMatcher(const xgrammar::CompiledGrammar& grammar) : matcher_(grammar) {}

  bool fill_bitmask(std::span<uint32_t> words) override {
    int64_t shape = static_cast<int64_t>(words.size());
    DLTensor tensor{};
    tensor.data = words.data();
    tensor.device = {kDLCPU, 0};
    tensor.ndim = 1;
    tensor.dtype = {kDLInt, 32, 1};
    tensor.shape = &shape;
    return matcher_.FillNextTokenBitmask(&tensor);
  }
  bool accept(TokenId token) override { return !matcher_.IsTerminated() && matcher_.AcceptToken(token); }
  void rollback(int num_tokens) override { matcher_.Rollback(num_tokens); }
  bool is_terminated() const override { return matcher_.IsTerminated(); }

 private:
  xgrammar::GrammarMatcher matcher_;
};

class XCompiledGrammar : public CompiledGrammar {
 public:
  explicit XCompiledGrammar(xgrammar::CompiledGrammar grammar) : grammar_(std::move(grammar)) {}
  std::unique_ptr<GrammarMatcher> make_matcher() const override { return std::make_unique<XGrammarMatcher>(grammar_); }
  size_t num_bytes() const override { return grammar_.MemorySizeBytes(); }

 private:
  xgrammar::CompiledGrammar grammar_;
};

class XGrammarCompiler : public GrammarCompiler {
 public:
  XGrammarCompiler(const xgrammar::TokenizerInfo& info, const GrammarLimits& limits)
      : limits_(limits), compiler_(info, limits.num_threads, true, static_cast<int64_t>(limits.max_cache_bytes)) {}

  Result<std::shared_ptr<const CompiledGrammar>> compile(const GrammarSpec& spec) override {
    MANTA_TRY(check_grammar_limits(spec, limits_));
    std::string ebnf = spec.text;
    if (spec.kind == GrammarKind::kChoice) {
      MANTA_ASSIGN(ebnf, ebnf_of_choices(spec.text));
    }
    try {
      return std::shared_ptr<const CompiledGrammar>(std::make_shared<XCompiledGrammar>(run(spec, ebnf)));
    } catch (const std::exception& thrown) {
      return invalid(fmt::format("{}: {}", to_string(spec.kind), reason_of(thrown)));
    }
  }

 private:
  xgrammar::CompiledGrammar run(const GrammarSpec& spec, const std::string& ebnf) {
    switch (spec.kind) {
      case GrammarKind::kJsonObject: return compiler_.CompileJSONSchema(R"({"type":"object"})", spec.any_whitespace);
      case GrammarKind::kJsonSchema: return compiler_.CompileJSONSchema(spec.text, spec.any_whitespace);
      case GrammarKind::kRegex: return compiler_.CompileRegex(spec.text);
      case GrammarKind::kStructuralTag: return compiler_.CompileStructuralTag(spec.text);
      case GrammarKind::kChoice:
      case GrammarKind::kEbnf: return compiler_.CompileGrammar(ebnf);
      case GrammarKind::kNone: break;
    }
    throw std::invalid_argument("there is no grammar to compile");
  }

  const GrammarLimits limits_;
  xgrammar::GrammarCompiler compiler_;
};

Status check_vocabulary(const GrammarVocabulary& v) {
  if (v.token_bytes.empty() || v.vocab_size < static_cast<int>(v.token_bytes.size())) {
    return invalid(fmt::format("{} tokens for logits of {} entries", v.token_bytes.size(), v.vocab_size));
  }
  if (v.stop_token_ids.empty()) return invalid("a grammar needs an end token: the model names none");
  for (const TokenId id : v.stop_token_ids) {
    if (id < 0 || id >= v.vocab_size) return invalid(fmt::format("end token {}: must be in [0, {})", id, v.vocab_size));
  }
  return {};
}

}  // namespace

const char* to_string(GrammarKind kind) {
  switch (kind) {
    case GrammarKind::kNone: return "none";
    case GrammarKind::kJsonObject: return "json_object";
    case GrammarKind::kJsonSchema: return "json_schema";
    case GrammarKind::kRegex: return "regex";
    case GrammarKind::kChoice: return "choice";
    case GrammarKind::kEbnf: return "grammar";
    case GrammarKind::kStructuralTag: return "structural_tag";
  }
  return "?";
}

Status check_grammar_limits(const GrammarSpec& spec, const GrammarLimits& limits) {
  if (spec.text.size() > limits.max_text_bytes) {
    return invalid(
        fmt::format("{} of {} bytes: at most {}", to_string(spec.kind), spec.text.size(), limits.max_text_bytes));
  }
  const int nesting = nesting_of(spec.text, is_json(spec.kind));
  if (nesting > limits.max_nesting) {
    return invalid(
        fmt::format("{} nested {} levels deep: at most {}", to_string(spec.kind), nesting, limits.max_nesting));
  }
  if (const auto escape = overlong_escape(spec.text); !escape.empty()) {
    return invalid(fmt::format("{}: {} names no character: the last one is U+10FFFF", to_string(spec.kind), escape));
  }
  return {};
}

Result<std::unique_ptr<GrammarCompiler>> GrammarCompiler::make(const GrammarVocabulary& vocabulary,
                                                               const GrammarLimits& limits) {
  MANTA_TRY(check_vocabulary(vocabulary));
  try {
    const xgrammar::TokenizerInfo info(vocabulary.token_bytes, xgrammar::VocabType::RAW, vocabulary.vocab_size,
                                       vocabulary.stop_token_ids);
    return std::unique_ptr<GrammarCompiler>(std::make_unique<XGrammarCompiler>(info, limits));
  } catch (const std::exception& thrown) {
    return invalid(fmt::format("the vocabulary does not suit grammars: {}", reason_of(thrown)));
  }
}

}  // namespace manta::sample
