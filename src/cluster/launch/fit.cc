#include "cluster/launch/fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace manta::cluster {
namespace {

int64_t largest_divisor(int64_t of, int64_t at_most) {
  int64_t divisor = std::clamp<int64_t>(at_most, 1, of);
  while (of % divisor != 0) --divisor;
  return divisor;
}

class Fitter {
 public:
  Fitter(const Machine& machine, const ModelLimits& model) : machine_(machine), model_(model) {}

  void fit_front_doors(PdFile& file) {
    const bool more = file.num_front_doors > 1;
    if (more) add("ingress_deployment_config replicas", file.num_front_doors, 1, "one router serves one machine");
    file.num_front_doors = 1;
  }

  void fit_role(RolePlan& role, int64_t max_ranks, const std::string& why) {
    where_ = role.config.where;
    Settings& s = role.settings;
    shrink("data_parallel_size", s.data_parallel_size, max_ranks, why);
    fit_node_size(role);
    fit_model_len(s);
    fit_experts(s);
    fit_interfaces(role);
  }

  std::vector<Adjustment> take() { return std::move(out_); }

 private:
  void add(const std::string& key, const std::string& asked, const std::string& used, const std::string& why) {
    out_.push_back({where_.empty() ? key : where_ + "." + key, asked, used, why});
  }
  void add(const std::string& key, int64_t asked, int64_t used, const std::string& why) {
    add(key, std::to_string(asked), std::to_string(used), why);
  }
  void shrink(const std::string& key, int64_t& value, int64_t most, const std::string& why) {
    if (value <= most) return;
    add(key, value, most, why);
    value = most;
  }
  void switch_off(const std::string& key, bool& value, const std::string& why) {
    if (std::exchange(value, false)) add(key, "true", "false", why);
  }

  // Ranks of a node must divide all ranks. What is asked stays a divisor where the ranks stayed as they were.
  void fit_node_size(RolePlan& role) {
    if (!role.config.dp_size_per_node) return;
    const int64_t ranks = role.settings.data_parallel_size;
    shrink("dp_size_per_node", *role.config.dp_size_per_node, largest_divisor(ranks, *role.config.dp_size_per_node),
           fmt::format("must divide the {} ranks", ranks));
  }

  void fit_model_len(Settings& s) {
    if (s.max_model_len) shrink("max_model_len", *s.max_model_len, model_.max_model_len, "the model's limit");
  }

  void fit_experts(Settings& s) {
    const int64_t ranks = s.data_parallel_size;
    if (ranks == 1) {
      shrink("eplb_config.num_redundant_experts", s.eplb_config.num_redundant_experts, 0, "one rank has all experts");
      switch_off("enable_eplb", s.enable_eplb, "one rank has nothing to balance");
      switch_off("enable_dbo", s.enable_dbo, "one rank has no communication to hide");
    }
    if (!s.enable_expert_parallel || model_.num_experts == 0) return;
    // Every rank holds equally many experts.
    int64_t redundant = s.eplb_config.num_redundant_experts;
    while (redundant > 0 && (model_.num_experts + redundant) % ranks != 0) --redundant;
    shrink("eplb_config.num_redundant_experts", s.eplb_config.num_redundant_experts, redundant,
           fmt::format("the {} experts and their copies must divide by {} ranks", model_.num_experts, ranks));
  }

  void fit_interfaces(RolePlan& role) {
    const auto missing = [this](const std::string& name) {
      return !name.empty() && !machine_.interfaces.contains(name);
    };
    for (auto& [name, value] : role.config.env_vars) {
      if (!name.ends_with("_SOCKET_IFNAME") || !missing(value)) continue;
      add(name, std::exchange(value, "lo"), "lo", "this machine has no such interface");
    }
    auto& chosen = role.settings.socket_ifname;
    if (!chosen || !missing(*chosen)) return;
    const bool told = std::any_of(out_.begin(), out_.end(), [&](const Adjustment& a) {
      return a.key.starts_with(where_) && a.key.ends_with("_SOCKET_IFNAME") && a.asked == *chosen;
    });
    if (!told) add("socket_ifname", *chosen, "lo", "this machine has no such interface");
    chosen = "lo";
  }

  const Machine& machine_;
  const ModelLimits& model_;
  std::string where_;
  std::vector<Adjustment> out_;
};

struct Share {
  int64_t most = 1;
  std::string why;
};

// How many ranks each role may have. GPUs are shared out in the proportion that was asked for.
std::vector<Share> shares(const std::vector<RolePlan>& roles, const Machine& machine) {
  std::vector<Share> out;
  if (machine.num_gpus == 0) {
    for (const RolePlan& role : roles) {
      const int64_t most = role.config.role == "prefill" ? kMaxCpuPrefillRanks : kMaxCpuDecodeRanks;
      out.push_back({most, fmt::format("on a CPU at most {}", most)});
    }
    return out;
  }
  int64_t asked = 0, left = machine.num_gpus;
  for (const RolePlan& role : roles) asked += role.settings.data_parallel_size;
  for (size_t i = 0; i < roles.size(); ++i) {
    const int64_t wanted = roles[i].settings.data_parallel_size;
    const bool last = i + 1 == roles.size();
    int64_t most = asked <= machine.num_gpus ? wanted : last ? left : machine.num_gpus * wanted / asked;
    most = std::max<int64_t>(1, most);  // two roles on one GPU share it
    left -= most;
    out.push_back({most, fmt::format("{} GPUs here for {} ranks", machine.num_gpus, asked)});
  }
  return out;
}

}  // namespace

std::string to_string(const Adjustment& a) {
  return fmt::format("{}: {} -> {} ({})", a.key, a.asked, a.used, a.why);
}

std::vector<Adjustment> fit(PdFile& file, std::vector<RolePlan>& roles, const Machine& machine,
                            const ModelLimits& model) {
  Fitter fitter(machine, model);
  fitter.fit_front_doors(file);
  const auto most = shares(roles, machine);
  for (size_t i = 0; i < roles.size(); ++i) fitter.fit_role(roles[i], most[i].most, most[i].why);
  return fitter.take();
}

}  // namespace manta::cluster
