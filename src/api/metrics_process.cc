#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "api/metrics_page.h"

namespace manta::api {
namespace {

struct ProcessUse {
  double cpu_seconds = 0, resident_bytes = 0, virtual_bytes = 0;
};

ProcessUse read_process_use() {
  ProcessUse use;
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  const size_t name_end = line.rfind(')');  // the name may hold spaces
  if (name_end == std::string::npos) return use;
  std::istringstream fields(line.substr(name_end + 2));
  std::vector<std::string> values;
  for (std::string value; fields >> value;) values.push_back(value);
  // proc(5), counted from the state behind the name: utime 11, stime 12, vsize 20, rss 21.
  if (values.size() < 22) return use;
  const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  use.cpu_seconds = (std::strtod(values[11].c_str(), nullptr) + std::strtod(values[12].c_str(), nullptr)) / ticks;
  use.virtual_bytes = std::strtod(values[20].c_str(), nullptr);
  use.resident_bytes = std::strtod(values[21].c_str(), nullptr) * static_cast<double>(sysconf(_SC_PAGESIZE));
  return use;
}

}  // namespace

void write_process(Page& page, int64_t num_admitted) {
  const ProcessUse use = read_process_use();
  page.text.family("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.");
  page.text.sample({}, use.cpu_seconds);
  page.text.family("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.");
  page.text.sample({}, use.resident_bytes);
  page.text.family("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.");
  page.text.sample({}, use.virtual_bytes);
  page.text.family("manta_admitted_requests", "gauge", "Sequences this server has admitted and not finished.");
  page.text.sample({}, static_cast<double>(num_admitted));
}

}  // namespace manta::api
