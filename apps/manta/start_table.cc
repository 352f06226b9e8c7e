#include "manta/start_table.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

namespace manta {
namespace {

// Rows longer than the screen would wrap, and then moving up by their number would not reach the first.
size_t terminal_width(std::FILE* out) {
  winsize size{};
  return ::ioctl(::fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

StartTable::StartTable(std::FILE* out) : out_(out), terminal_(::isatty(::fileno(out)) == 1) {}

void StartTable::add(const std::string& name) {
  rows_.emplace_back(name, "");
  name_width_ = std::max(name_width_, name.size());
}

void StartTable::set(const std::string& name, const std::string& stage) {
  const auto row = std::find_if(rows_.begin(), rows_.end(), [&](const auto& r) { return r.first == name; });
  if (row == rows_.end() || row->second == stage) return;
  row->second = stage;
  if (!open_) return;
  if (terminal_) {
    erase();
    draw();
  } else {
    fmt::print(out_, "{:{}}  {}\n", name, name_width_, stage);
    std::fflush(out_);
  }
}

void StartTable::print_line(const std::string& line) {
  erase();
  fmt::print(out_, "{}\n", line);
  draw();
}

void StartTable::close() {
  open_ = false;
  num_drawn_ = 0;
}

void StartTable::erase() {
  if (num_drawn_ > 0) fmt::print(out_, "\x1b[{}A\r\x1b[J", num_drawn_);
  num_drawn_ = 0;
}

void StartTable::draw() {
  if (terminal_ && open_) {
    const size_t width = terminal_width(out_);
    for (const auto& [name, stage] : rows_) {
      const std::string row = fmt::format("  {:{}}  {}", name, name_width_, stage);
      fmt::print(out_, "{}\n", row.substr(0, width - 1));
    }
    num_drawn_ = rows_.size();
  }
  std::fflush(out_);
}

}  // namespace manta
