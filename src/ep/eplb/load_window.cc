#include "ep/eplb/load_window.h"

#include <algorithm>

namespace manta::ep {

LoadWindow::LoadWindow(int64_t window_size, int64_t step_interval, int num_layers, int num_logical)
    : window_(std::min(window_size, step_interval)),
      interval_(step_interval),
      steps_(step_interval - std::max<int64_t>(step_interval / 4, 1)),
      loads_(num_layers, std::vector<int64_t>(num_logical, 0)) {}

void LoadWindow::step(std::span<const LayerLoad> loads, const ExpertMap& map) {
  if (recording()) {
    for (const LayerLoad& load : loads) {
      const size_t first = static_cast<size_t>(load.layer) * map.num_physical;
      for (size_t p = 0; p < load.tokens.size(); ++p) {
        loads_[load.layer][map.physical_to_logical[first + p]] += load.tokens[p];
      }
    }
  }
  ++steps_;
}

void LoadWindow::restart() {
  steps_ = 0;
  for (auto& layer : loads_) std::fill(layer.begin(), layer.end(), 0);
}

}  // namespace manta::ep
