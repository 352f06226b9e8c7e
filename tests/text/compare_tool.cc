// The tokenizer as a filter, for compare_with_hf.py: JSON lines in, JSON lines out.
//   manta_text_compare encode TOKENIZER   "text"  -> [ids]
//   manta_text_compare decode TOKENIZER   [ids]   -> "text"
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "text/tokenizer.h"

namespace {

int fail(const std::string& message) {
  std::cerr << "manta_text_compare: " << message << "\n";
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return fail("usage: manta_text_compare encode|decode TOKENIZER");
  const std::string mode = argv[1];
  const auto loaded = manta::text::Tokenizer::load(argv[2]);
  if (!loaded.ok()) return fail(loaded.error().message);
  const manta::text::Tokenizer& tokenizer = **loaded;
  std::ios::sync_with_stdio(false);
  for (std::string line; std::getline(std::cin, line);) {
    const auto json = nlohmann::json::parse(line);
    if (mode == "encode") {
      const auto ids = tokenizer.encode(json.get<std::string>());
      if (!ids.ok()) return fail(ids.error().message);
      std::cout << nlohmann::json(*ids).dump() << "\n";
    } else {
      std::cout << nlohmann::json(tokenizer.decode(json.get<std::vector<manta::TokenId>>(), false)).dump() << "\n";
    }
  }
  return 0;
}
