// Progress of something counted in bytes: weights being loaded, files being downloaded.
#pragma once

#include <cstddef>
#include <cstdio>
#include <functional>
#include <string>

namespace manta::model {

struct Progress {
  size_t bytes_done = 0;
  size_t bytes_total = 0;  // 0: not known
  double seconds = 0;
  bool finished = false;
};
using ProgressFn = std::function<void(const Progress&)>;

// "12.3 of 37.4 GiB (33 %), 2.10 GiB/s, 12 s left"
std::string describe(const Progress& progress);

// A bar that is redrawn in place when `out` is a terminal; else a line each tenth of the way, at most one in two
// seconds, and one at the end.
ProgressFn print_progress(std::FILE* out, std::string title);

}  // namespace manta::model
