// How fast is Tokenizer::encode on one thread? bench/tokenizer_bench.py gives it texts and runs Hugging Face
// `tokenizers` on the same ones, in the same run.
//   manta_tokenizer_bench TOKENIZER TEXTS.jsonl SECONDS     (one JSON string per line)
// Prints one JSON line: MB (10^6 bytes) per CPU second over passes of all texts as median, min and max; tokens; load
// time; and the same for decode, in MB of text.
#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace {

using manta::TokenId;
using manta::text::Tokenizer;

// CPU time of this thread: one thread computes and nothing waits, so it is the wall time of an idle machine.
double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// Runs pass() until `seconds` are over (three times at least, after one to warm up) and gives MB/s.
template <typename Pass>
nlohmann::json measure(double seconds, size_t num_bytes, Pass&& pass) {
  pass();
  std::vector<double> rates;
  const double start = cpu_seconds();
  while (rates.size() < 3 || cpu_seconds() - start < seconds) {
    const double begin = cpu_seconds();
    pass();
    rates.push_back(static_cast<double>(num_bytes) / 1e6 / (cpu_seconds() - begin));
  }
  std::sort(rates.begin(), rates.end());
  return {{"median", rates[rates.size() / 2]}, {"min", rates.front()}, {"max", rates.back()}, {"passes", rates.size()}};
}

int fail(const std::string& message) {
  std::cerr << "tokenizer_bench: " << message << "\n";
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return fail("usage: manta_tokenizer_bench TOKENIZER TEXTS.jsonl SECONDS");
  const double load_start = cpu_seconds();
  const auto loaded = Tokenizer::load(argv[1]);
  const double load_ms = (cpu_seconds() - load_start) * 1e3;
  if (!loaded.ok()) return fail(loaded.error().message);
  const Tokenizer& tokenizer = **loaded;
  std::vector<std::string> texts;
  size_t num_bytes = 0;
  std::ifstream in(argv[2]);
  for (std::string line; std::getline(in, line);) {
    texts.push_back(nlohmann::json::parse(line).get<std::string>());
    num_bytes += texts.back().size();
  }
  if (texts.empty()) return fail(fmt::format("{} holds no text", argv[2]));

  std::vector<std::vector<TokenId>> ids(texts.size());
  bool ok = true;
  const auto encode = measure(std::stod(argv[3]), num_bytes, [&] {
    for (size_t i = 0; i < texts.size(); ++i) {
      auto result = tokenizer.encode(texts[i]);
      ok = ok && result.ok();
      if (result.ok()) ids[i] = std::move(result).value();
    }
  });
  if (!ok) return fail("a text could not be encoded");
  size_t num_tokens = 0, num_decoded = 0;
  for (const auto& list : ids) num_tokens += list.size();
  const auto decode = measure(std::stod(argv[3]) / 4, num_bytes, [&] {
    num_decoded = 0;
    for (const auto& list : ids) num_decoded += tokenizer.decode(list, false).size();
  });
  if (num_decoded != num_bytes) return fail(fmt::format("decoded to {} of {} bytes", num_decoded, num_bytes));
  const nlohmann::json result = {{"encode_mb_s", encode}, {"decode_mb_s", decode}, {"bytes", num_bytes},
                                 {"tokens", num_tokens},  {"texts", texts.size()}, {"load_ms", load_ms}};
  std::cout << result.dump() << "\n";
  return 0;
}
