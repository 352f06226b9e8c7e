#include "manta/bench/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

namespace manta::bench {
namespace {

using nlohmann::json;

constexpr std::array<double, 4> kPercentiles{50, 90, 95, 99};

struct Named {
  const char* name;
  const Distribution* values;
};

std::array<Named, 4> distributions(const Report& r) {
  return {{{"TTFT", &r.ttft}, {"ITL", &r.itl}, {"TPOT", &r.tpot}, {"E2E", &r.e2e}}};
}

void sort_all(Report& r) {
  for (Distribution* d : {&r.ttft, &r.itl, &r.tpot, &r.e2e}) std::sort(d->sorted.begin(), d->sorted.end());
}

}  // namespace

double Distribution::mean() const {
  if (sorted.empty()) return 0;
  return std::accumulate(sorted.begin(), sorted.end(), 0.0) / static_cast<double>(sorted.size());
}

double Distribution::percentile(double p) const {
  if (sorted.empty()) return 0;
  const double at = p / 100 * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

Report make_report(const std::vector<RequestRecord>& records) {
  Report r;
  std::map<std::string, int> errors;
  for (const RequestRecord& record : records) {
    ++r.num_requests;
    r.duration_s = std::max(r.duration_s, record.end_s);
    if (!record.ok()) {
      ++errors[record.error];
      continue;
    }
    ++r.num_ok;
    r.prompt_tokens += record.prompt_tokens;
    r.output_tokens += record.output_tokens;
    r.e2e.sorted.push_back(record.end_s - record.start_s);
    if (record.chunks_s.empty()) continue;
    r.ttft.sorted.push_back(record.chunks_s.front() - record.start_s);
    for (size_t i = 1; i < record.chunks_s.size(); ++i) {
      r.itl.sorted.push_back(record.chunks_s[i] - record.chunks_s[i - 1]);
    }
    if (record.output_tokens > 1) {
      r.tpot.sorted.push_back((record.chunks_s.back() - record.chunks_s.front()) / (record.output_tokens - 1));
    }
  }
  for (const auto& [text, count] : errors) r.errors.push_back(fmt::format("{} x {}", count, text));
  sort_all(r);
  return r;
}

std::string to_table(const Report& r) {
  const double s = std::max(r.duration_s, 1e-9);
  std::string out = fmt::format(
      "requests     {} of {} ended well in {:.2f} s: {:.2f} per second\n"
      "tokens       {} in, {} out: {:.1f} out per second\n",
      r.num_ok, r.num_requests, r.duration_s, r.num_ok / s, r.prompt_tokens, r.output_tokens,
      static_cast<double>(r.output_tokens) / s);
  out += fmt::format("{:<6} {:>10} {:>10} {:>10} {:>10} {:>10}   (ms)\n", "", "mean", "p50", "p90", "p95", "p99");
  for (const Named& d : distributions(r)) {
    out += fmt::format("{:<6} {:>10.3f}", d.name, 1e3 * d.values->mean());
    for (const double p : kPercentiles) out += fmt::format(" {:>10.3f}", 1e3 * d.values->percentile(p));
    out += "\n";
  }
  for (const auto& e : r.errors) out += fmt::format("error        {}\n", e);
  return out;
}

std::string to_json(const Report& r, const std::string& setup) {
  const double s = std::max(r.duration_s, 1e-9);
  json out{{"setup", json::parse(setup)},
           {"num_requests", r.num_requests},
           {"num_ok", r.num_ok},
           {"duration_s", r.duration_s},
           {"prompt_tokens", r.prompt_tokens},
           {"output_tokens", r.output_tokens},
           {"requests_per_s", r.num_ok / s},
           {"output_tokens_per_s", static_cast<double>(r.output_tokens) / s},
           {"errors", r.errors}};
  for (const Named& d : distributions(r)) {
    std::string key = d.name;
    std::transform(key.begin(), key.end(), key.begin(), [](unsigned char c) { return std::tolower(c); });
    json& row = out[key + "_s"];
    row["mean"] = d.values->mean();
    for (const double p : kPercentiles) row[fmt::format("p{:.0f}", p)] = d.values->percentile(p);
  }
  return out.dump();
}

std::string to_svg(const Report& r, const std::string& title) {
  constexpr double kWidth = 760, kHeight = 420, kLeft = 60, kRight = 740, kTop = 50, kBottom = 370;
  constexpr double kFirstDecade = -4, kLastDecade = 2;  // 0.1 ms to 100 s
  const auto x = [&](double seconds) {
    const double d = std::clamp(std::log10(std::max(seconds, 1e-9)), kFirstDecade, kLastDecade);
    return kLeft + (d - kFirstDecade) / (kLastDecade - kFirstDecade) * (kRight - kLeft);
  };
  const auto y = [&](double share) { return kBottom - share * (kBottom - kTop); };
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" font-family=\"sans-serif\" "
      "font-size=\"12\">\n<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n<text x=\"{2}\" y=\"24\" "
      "font-size=\"15\">{3}</text>\n",
      kWidth, kHeight, kLeft, title);
  for (int d = static_cast<int>(kFirstDecade); d <= static_cast<int>(kLastDecade); ++d) {
    const char* const labels[] = {"0.1 ms", "1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s"};
    const double at = x(std::pow(10.0, d));
    svg += fmt::format(
        "<line x1=\"{0:.1f}\" y1=\"{1}\" x2=\"{0:.1f}\" y2=\"{2}\" stroke=\"#ddd\"/>"
        "<text x=\"{0:.1f}\" y=\"{3}\" text-anchor=\"middle\">{4}</text>\n",
        at, kTop, kBottom, kBottom + 18, labels[d - static_cast<int>(kFirstDecade)]);
  }
  for (int i = 0; i <= 4; ++i) {
    svg += fmt::format(
        "<line x1=\"{0}\" y1=\"{1:.1f}\" x2=\"{2}\" y2=\"{1:.1f}\" stroke=\"#ddd\"/>"
        "<text x=\"{3}\" y=\"{4:.1f}\" text-anchor=\"end\">{5}%</text>\n",
        kLeft, y(i / 4.0), kRight, kLeft - 6, y(i / 4.0) + 4, i * 25);
  }
  const char* const colors[] = {"#c0392b", "#2471a3", "#7d3c98", "#1e8449"};
  int index = 0;
  for (const Named& d : distributions(r)) {
    std::string points;
    for (int i = 0; i <= 200 && !d.values->sorted.empty(); ++i) {
      points += fmt::format("{:.1f},{:.1f} ", x(d.values->percentile(i / 2.0)), y(i / 200.0));
    }
    svg += fmt::format(
        "<polyline fill=\"none\" stroke=\"{0}\" stroke-width=\"2\" points=\"{1}\"/>"
        "<text x=\"{2}\" y=\"44\" fill=\"{0}\">{3}</text>\n",
        colors[index], points, kLeft + 80 * index, d.name);
    ++index;
  }
  return svg + "</svg>\n";
}

}  // namespace manta::bench
