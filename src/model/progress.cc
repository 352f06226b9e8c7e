#include "model/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

namespace manta::model {

namespace {

constexpr int kBarCells = 24;
constexpr double kSecondsBetweenLines = 2.0;

std::string bytes_text(double bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  for (; bytes >= 1024 && unit < 4; ++unit) bytes /= 1024;
  return fmt::format("{:.{}f} {}", bytes, unit == 0 ? 0 : bytes < 10 ? 2 : 1, kUnits[unit]);
}

std::string time_text(double seconds) {
  const auto s = static_cast<long>(seconds + 0.5);
  return s < 90 ? fmt::format("{} s", s) : fmt::format("{}:{:02} min", s / 60, s % 60);
}

double fraction(const Progress& p) {
  return p.bytes_total == 0 ? 0.0
                            : std::min(1.0, static_cast<double>(p.bytes_done) / static_cast<double>(p.bytes_total));
}

std::string bar(const Progress& p) {
  const int full = static_cast<int>(fraction(p) * kBarCells);
  return "[" + std::string(full, '#') + std::string(kBarCells - full, '.') + "]";
}

struct Printer {
  std::FILE* out;
  std::string title;
  bool terminal;
  int tenths_said = 0;
  double said_at = 0;

  void operator()(const Progress& p) {
    if (terminal) {
      // Erase to the end of the line: the text before may have been longer.
      fmt::print(out, "\r{} {} {}\x1b[K{}", title, bar(p), describe(p), p.finished ? "\n" : "");
    } else {
      const int tenths = static_cast<int>(fraction(p) * 10);
      const bool due = tenths > tenths_said && p.seconds - said_at >= kSecondsBetweenLines;
      if (!p.finished && !due) return;
      tenths_said = tenths;
      said_at = p.seconds;
      fmt::print(out, "{} {}\n", title, describe(p));
    }
    std::fflush(out);
  }
};

}  // namespace

std::string describe(const Progress& p) {
  const double rate = p.seconds > 1e-6 ? static_cast<double>(p.bytes_done) / p.seconds : 0.0;
  if (p.finished) {
    return fmt::format("{} in {:.2f} s ({}/s)", bytes_text(static_cast<double>(p.bytes_done)), p.seconds,
                       bytes_text(rate));
  }
  std::string text = bytes_text(static_cast<double>(p.bytes_done));
  if (p.bytes_total > 0) {
    text += fmt::format(" of {} ({:.0f} %)", bytes_text(static_cast<double>(p.bytes_total)), 100 * fraction(p));
  }
  if (rate > 0) text += fmt::format(", {}/s", bytes_text(rate));
  if (rate > 0 && p.bytes_total > p.bytes_done) {
    text += fmt::format(", {} left", time_text(static_cast<double>(p.bytes_total - p.bytes_done) / rate));
  }
  return text;
}

ProgressFn print_progress(std::FILE* out, std::string title) {
  // std::function copies its target; the state is one.
  auto printer = std::make_shared<Printer>(Printer{out, std::move(title), isatty(fileno(out)) == 1});
  return [printer](const Progress& p) { (*printer)(p); };
}

}  // namespace manta::model
