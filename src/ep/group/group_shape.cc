#include "ep/group/group_shape.h"

#include <fmt/format.h>

#include <algorithm>

namespace manta::ep {

int64_t GroupShape::capacity() const {
  // An expert of a token is chosen once, so a token has at most one row per local expert.
  const int per_token = layout == ExpertLayout::kContiguous ? std::min(moe.num_experts_per_tok, moe.num_local_experts)
                                                            : moe.num_local_experts;
  return max_rows_per_expert() * per_token;
}

Status check(const GroupShape& s) {
  const auto bad = [](std::string message) {
    return error(ErrorCode::kInvalidArgument, "expert transport: " + std::move(message));
  };
  if (s.moe.wire_dtype != DType::kF32 && s.moe.wire_dtype != DType::kBF16) {
    return bad(fmt::format("wire dtype {}: F32 or BF16", to_string(s.moe.wire_dtype)));
  }
  if (s.moe.hidden_size < 1 || s.moe.num_experts_per_tok < 1 || s.moe.num_local_experts < 1 || s.max_num_tokens < 1 ||
      s.num_microbatches < 1) {
    return bad(fmt::format(
        "hidden_size {}, top_k {}, {} experts a rank, {} tokens, {} microbatches: each must be 1 or "
        "more",
        s.moe.hidden_size, s.moe.num_experts_per_tok, s.moe.num_local_experts, s.max_num_tokens, s.num_microbatches));
  }
  if (int64_t{s.moe.num_local_experts} * s.size != s.moe.num_physical_experts) {
    return bad(fmt::format("{} experts on each of {} ranks are not {}", s.moe.num_local_experts, s.size,
                           s.moe.num_physical_experts));
  }
  if (s.capacity() > INT32_MAX) {
    return bad(fmt::format("{} rows a round: at most {}; lower VLLM_MOE_DP_CHUNK_SIZE, now {}", s.capacity(), INT32_MAX,
                           s.max_num_tokens));
  }
  return {};
}

std::string difference(const GroupShape& here, const GroupShape& there) {
  const auto number = [](const char* name, int there_value, int here_value) {
    return there_value == here_value ? std::string()
                                     : fmt::format("{} {} there, {} here", name, there_value, here_value);
  };
  const std::string all[] = {
      number("EP size", there.size, here.size),
      number("hidden_size", there.moe.hidden_size, here.moe.hidden_size),
      number("num_experts_per_tok", there.moe.num_experts_per_tok, here.moe.num_experts_per_tok),
      number("physical experts", there.moe.num_physical_experts, here.moe.num_physical_experts),
      number("experts a rank", there.moe.num_local_experts, here.moe.num_local_experts),
      number("wire dtype", static_cast<int>(there.moe.wire_dtype), static_cast<int>(here.moe.wire_dtype)),
      number("layout", static_cast<int>(there.layout), static_cast<int>(here.layout)),
      number("tokens a round", there.max_num_tokens, here.max_num_tokens),
      number("microbatches", there.num_microbatches, here.num_microbatches)};
  for (const std::string& text : all) {
    if (!text.empty()) return text;
  }
  return "";
}

}  // namespace manta::ep
