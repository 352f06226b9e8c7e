#include "ep/exchange.h"

#include <algorithm>
#include <cassert>
#include <cstring>

namespace manta::ep {

namespace {

// The rows of one message. A token reaches top_k ranks at most, so in a larger group each row goes out several times,
// to other ranks each time: token t is row t / copies for the ranks from (t % copies) * top_k on.
struct Plan {
  size_t row_bytes, num_bytes;
  int copies, num_tokens, first_of_me;

  Plan(const Exchange& x, size_t bytes)
      : row_bytes(x.shape.hidden_size * dtype_bytes(x.shape.wire_dtype)), num_bytes(bytes) {
    const int top_k = x.shape.num_experts_per_tok;
    copies = (x.size + top_k - 1) / top_k;
    num_tokens = static_cast<int>((bytes + row_bytes - 1) / row_bytes) * copies;
    first_of_me = x.rank / top_k;
  }
};

// The rows of this rank's first expert.
const char* received(const ExpertBatch& batch, int64_t& num_rows) {
  num_rows = batch.layout == ExpertLayout::kContiguous
                 ? batch.row_offsets.as<int32_t>()[1] - batch.row_offsets.as<int32_t>()[0]
                 : batch.num_rows.as<int32_t>()[0];
  return static_cast<const char*>(batch.hidden.data);
}

}  // namespace

Result<std::vector<std::string>> all_gather(const Exchange& x, std::string_view mine) {
  const Plan plan(x, mine.size());
  const int top_k = x.shape.num_experts_per_tok;
  std::vector<char> rows;
  std::vector<int32_t> ids;
  std::vector<float> weights(static_cast<size_t>(x.max_num_tokens) * top_k, 0.0f);
  std::vector<float> unused(static_cast<size_t>(x.max_num_tokens) * x.shape.hidden_size);
  std::vector<std::string> all(static_cast<size_t>(x.size));
  DispatchHandle& handle = x.transport->handle(0);
  for (int first = 0; first < plan.num_tokens; first += x.max_num_tokens) {
    const int n = std::min(x.max_num_tokens, plan.num_tokens - first);
    rows.assign(n * plan.row_bytes, 0);
    ids.assign(static_cast<size_t>(n) * top_k, -1);
    int mine_of_each = 0;
    for (int t = 0; t < n; ++t) {
      const int row = (first + t) / plan.copies, copy = (first + t) % plan.copies;
      const std::string_view part = mine.substr(row * plan.row_bytes, plan.row_bytes);
      std::memcpy(rows.data() + t * plan.row_bytes, part.data(), part.size());
      for (int k = 0; k < top_k && copy * top_k + k < x.size; ++k) {
        ids[t * top_k + k] = (copy * top_k + k) * x.shape.num_local_experts;
      }
      mine_of_each += copy == plan.first_of_me;
    }
    Routed routed;
    routed.hidden = make_tensor(rows.data(), x.shape.wire_dtype, {n, x.shape.hidden_size});
    routed.topk_id = make_tensor(ids.data(), DType::kI32, {n, top_k});
    routed.topk_weight = make_tensor(weights.data(), DType::kF32, {n, top_k});
    ExpertBatch batch;
    x.transport->dispatch_start(*x.lane, handle, routed);
    x.transport->dispatch_finish(*x.lane, handle, batch);
    int64_t num_rows = 0;
    const char* from = received(batch, num_rows);
    if (num_rows == int64_t{mine_of_each} * x.size) {
      for (std::string& message : all) {
        message.append(from, mine_of_each * plan.row_bytes);
        from += mine_of_each * plan.row_bytes;
      }
    }
    x.transport->combine_start(*x.lane, handle, batch);
    x.transport->combine_finish(*x.lane, handle, make_tensor(unused.data(), DType::kF32, {n, x.shape.hidden_size}));
    MANTA_TRY(x.transport->status());
    if (num_rows != int64_t{mine_of_each} * x.size) {
      return error(ErrorCode::kInternal, "ranks exchange messages of different lengths");
    }
  }
  for (std::string& message : all) message.resize(plan.num_bytes);
  return all;
}

}  // namespace manta::ep
