// The start of many processes as people see it: on a terminal a table redrawn in place, elsewhere a line per change.
#pragma once

#include <cstdio>
#include <string>
#include <utility>
#include <vector>

namespace manta {

class StartTable {
 public:
  explicit StartTable(std::FILE* out);
  bool on_terminal() const { return terminal_; }

  void add(const std::string& name);  // a row; in the order they are to be shown
  void set(const std::string& name, const std::string& stage);
  // A line of somebody else's: appears above the table.
  void print_line(const std::string& line);
  void close();  // the table stays as it is; what comes later is plain lines

 private:
  void erase();
  void draw();

  std::FILE* out_;
  bool terminal_;
  bool open_ = true;
  size_t num_drawn_ = 0;  // rows on the screen
  size_t name_width_ = 0;
  std::vector<std::pair<std::string, std::string>> rows_;  // name, stage
};

}  // namespace manta
