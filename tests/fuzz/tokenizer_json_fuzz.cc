// Any bytes as a tokenizer.json: refused, or a tokenizer that neither crashes nor contradicts itself.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace {

using manta::TokenId;
using manta::text::Detokenizer;
using manta::text::Tokenizer;

void require(bool condition) {
  if (!condition) std::abort();
}

// Every id has a token, and streaming gives what decode gives.
void check_round_trip(const std::shared_ptr<const Tokenizer>& tokenizer, std::string_view text) {
  const auto ids = tokenizer->encode(text, {.add_special_tokens = true});
  if (!ids.ok()) return;
  for (const bool skip : {false, true}) {
    Detokenizer detokenizer(tokenizer, skip);
    std::string streamed;
    for (const TokenId id : *ids) {
      require(id >= 0);
      detokenizer.push(id, streamed);
    }
    detokenizer.finish(streamed);
    require(streamed == tokenizer->decode(*ids, skip));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = Tokenizer::from_json(json, nullptr);
  if (!tokenizer.ok()) return 0;
  check_round_trip(*tokenizer, "Hello, world! 12345 \t\n don't 你好 é😀 <s></s>");
  check_round_trip(*tokenizer, json.substr(0, 200));
  return 0;
}
