#include "text/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <cctype>

#include "text/unicode_additions.h"

namespace manta::text {

namespace {

constexpr std::string_view kSpaces = R"(\p{Z}\x{9}-\x{D}\x{85})";  // White_Space; PCRE2's \s has U+180E as well
constexpr std::string_view kCategories = "LMNPSZ";

// Walks an Oniguruma pattern once and writes PCRE2's spelling of it.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  Result<std::string> run() {
    while (pos_ < in_.size()) MANTA_TRY(item());
    return std::move(out_);
  }

 private:
  bool at(std::string_view what) const { return in_.substr(pos_).starts_with(what); }
  Error refuse(std::string_view construct) const {
    return error(ErrorCode::kUnimplemented,
                 fmt::format("pattern '{}' uses {} at byte {}, whose meaning in PCRE2 is not known to be Oniguruma's",
                             in_, construct, pos_));
  }

  void copy(size_t count) {
    out_.append(in_.substr(pos_, count));
    pos_ += std::min(count, in_.size() - pos_);
  }

  Status item() {
    switch (in_[pos_]) {
      case '\\': return escape();
      case '[': return char_class();
      case '(': return group();
      case '{': return interval();
      case '^':
      case '$': return refuse("an anchor");  // they match at every line in Ruby's syntax
      default: copy(1); return {};
    }
  }

  Status group() {
    static constexpr std::string_view kKnown[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    for (const auto known : kKnown) {
      if (at(known)) {
        copy(known.size());
        return {};
      }
    }
    if (at("(?")) return refuse("a group option");
    if (at("(*")) return refuse("'(*'");
    copy(1);
    return {};
  }

  // {n}, {n,} and {n,m}: Ruby also has {,m}, and reads a '?' or '+' after the brace in its own way.
  Status interval() {
    size_t end = pos_ + 1;
    while (end < in_.size() && (std::isdigit(static_cast<unsigned char>(in_[end])) || in_[end] == ',')) ++end;
    const std::string_view body = in_.substr(pos_ + 1, end - pos_ - 1);
    const bool well_formed = end < in_.size() && in_[end] == '}' && !body.empty() && body.front() != ',' &&
                             std::count(body.begin(), body.end(), ',') <= 1;
    if (!well_formed) return refuse("'{' outside of {n}, {n,} or {n,m}");
    if (end + 1 < in_.size() && (in_[end + 1] == '?' || in_[end + 1] == '+')) return refuse("'?' or '+' after {n,m}");
    copy(end + 1 - pos_);
    return {};
  }

  // \p{L} or \P{L}: appends the class's content and says whether it is negated.
  Status property(bool& negated) {
    const bool known = pos_ + 4 < in_.size() && in_[pos_ + 2] == '{' && in_[pos_ + 4] == '}' &&
                       kCategories.find(in_[pos_ + 3]) != std::string_view::npos;
    if (!known) return refuse("a property other than \\p{L}, \\p{M}, \\p{N}, \\p{P}, \\p{S}, \\p{Z}");
    negated = in_[pos_ + 1] == 'P';
    out_ += fmt::format("\\p{{{}}}", in_[pos_ + 3]);
    for (const auto& range : added_since_unicode_14(in_[pos_ + 3])) {
      out_ += range.first == range.last ? fmt::format("\\x{{{:X}}}", range.first)
                                        : fmt::format("\\x{{{:X}}}-\\x{{{:X}}}", range.first, range.last);
    }
    pos_ += 5;
    return {};
  }

  // A backslash and what follows, when it stands for one character in both syntaxes.
  Status escaped_char() {
    if (pos_ + 1 >= in_.size()) return refuse("a lone backslash");
    const char c = in_[pos_ + 1];
    if (c == 'v') {  // one character for Oniguruma, a class for PCRE2
      out_ += "\\x{B}";
      pos_ += 2;
      return {};
    }
    const bool is_punctuation = std::ispunct(static_cast<unsigned char>(c)) != 0;
    if (!is_punctuation && std::string_view("nrtf").find(c) == std::string_view::npos) {
      return refuse(fmt::format("'\\{}'", c));
    }
    copy(2);
    return {};
  }

  Status escape() {
    const char c = pos_ + 1 < in_.size() ? in_[pos_ + 1] : '\0';
    if (c == 's' || c == 'S') {
      out_ += fmt::format("[{}{}]", c == 'S' ? "^" : "", kSpaces);
      pos_ += 2;
      return {};
    }
    if (c == 'p' || c == 'P') {
      const size_t open = out_.size();
      bool negated = false;
      MANTA_TRY(property(negated));
      out_.insert(open, negated ? "[^" : "[");
      out_ += ']';
      return {};
    }
    return escaped_char();
  }

  Status class_escape() {
    const char c = pos_ + 1 < in_.size() ? in_[pos_ + 1] : '\0';
    if (c == 's') {
      out_ += kSpaces;
      pos_ += 2;
      return {};
    }
    if (c == 'p') {
      bool negated = false;
      return property(negated);
    }
    if (c == 'S' || c == 'P') return refuse("a negated property inside [...]");
    return escaped_char();
  }

  Status char_class() {
    copy(at("[^") ? 2 : 1);
    if (at("]")) return refuse("']' as first of a class");
    while (pos_ < in_.size() && in_[pos_] != ']') {
      if (in_[pos_] == '[') return refuse("'[' inside [...]");
      if (at("&&")) return refuse("'&&' inside [...]");
      if (in_[pos_] == '\\') {
        MANTA_TRY(class_escape());
      } else {
        copy(1);
      }
    }
    if (pos_ == in_.size()) return refuse("'[' without ']'");
    copy(1);
    return {};
  }

  std::string_view in_;
  size_t pos_ = 0;
  std::string out_;
};

std::string pcre2_message(int code) {
  char buffer[256] = {};
  pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(buffer), sizeof(buffer));
  return buffer;
}

constexpr size_t kJitStackBytes = 1 << 20;
// Backtracking grows with the text where the pattern is sound ("\s*[\r\n]+" walks back over a run of spaces once).
constexpr uint32_t kMinMatchLimit = 10'000'000;

}  // namespace

Result<std::string> to_pcre2(std::string_view onig_pattern) {
  return Translator(onig_pattern).run();
}

struct SplitPattern::Scratch::State {
  pcre2_match_data* match_data = pcre2_match_data_create(1, nullptr);  // only the whole match is wanted
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 * 1024, kJitStackBytes, nullptr);

  State() { pcre2_jit_stack_assign(context, nullptr, stack); }
  ~State() {
    pcre2_match_data_free(match_data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

SplitPattern::Scratch::Scratch() : state_(std::make_unique<State>()) {}
SplitPattern::Scratch::~Scratch() = default;
SplitPattern::Scratch::Scratch(Scratch&&) noexcept = default;

Result<SplitPattern> SplitPattern::compile(std::string_view onig_pattern, bool is_literal) {
  std::string pattern(onig_pattern);
  if (!is_literal) {
    MANTA_ASSIGN(pattern, to_pcre2(onig_pattern));
  }
  int code = 0;
  PCRE2_SIZE offset = 0;
  const uint32_t options =
      is_literal ? PCRE2_UTF | PCRE2_LITERAL : PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_AUTO_CAPTURE;
  pcre2_code* compiled =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options, &code, &offset, nullptr);
  if (compiled == nullptr) {
    return error(ErrorCode::kInvalidArgument, fmt::format("pattern '{}': {}", onig_pattern, pcre2_message(code)));
  }
  SplitPattern result;
  result.code_ = std::shared_ptr<const void>(compiled, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); });
  uint32_t can_match_empty = 0;
  pcre2_pattern_info(compiled, PCRE2_INFO_MATCHEMPTY, &can_match_empty);
  if (can_match_empty != 0) {
    return error(ErrorCode::kInvalidArgument, fmt::format("pattern '{}' matches the empty string", onig_pattern));
  }
  // Where the system forbids executable memory there is no JIT; pcre2_match then interprets, several times slower.
  (void)pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);
  return result;
}

Result<std::optional<SplitPattern::Match>> SplitPattern::find(std::string_view text, size_t from,
                                                              Scratch& scratch) const {
  auto& state = *scratch.state_;
  const auto limit = static_cast<uint32_t>(std::min<size_t>(kMinMatchLimit + 8 * text.size(), UINT32_MAX));
  pcre2_set_match_limit(state.context, limit);
  const int code = pcre2_match(static_cast<const pcre2_code*>(code_.get()), reinterpret_cast<PCRE2_SPTR>(text.data()),
                               text.size(), from, PCRE2_NO_UTF_CHECK, state.match_data, state.context);
  if (code == PCRE2_ERROR_NOMATCH) return std::optional<Match>();
  if (code < 0) {
    return error(ErrorCode::kResourceExhausted,
                 fmt::format("splitting {} bytes of text at byte {}: {}", text.size(), from, pcre2_message(code)));
  }
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(state.match_data);
  return std::optional<Match>(Match{offsets[0], offsets[1]});
}

}  // namespace manta::text
