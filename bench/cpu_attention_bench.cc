// How fast is the cpu backend's absorbed attention over the paged cache? Against oneDNN's two bf16 matmuls of the same
// sizes on contiguous keys (scores, then weights x latents; no softmax, no mask), one thread, same run. A causal
// prefill does about half of the products that the baseline's full rectangle has, and is compared with half of its
// time.
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <ctime>
#include <dnnl.hpp>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "backend/cpu/attention.h"

namespace {

using namespace manta;
using namespace manta::backend;

struct Case {
  const char* name;
  int heads, num_requests, num_rows, num_keys;  // rows per request; keys of the last row
};
constexpr Case kCases[] = {{"V3 decode, 1 request", 128, 1, 1, 2048}, {"V3 decode, 4 requests", 128, 4, 1, 2048},
                           {"tiny decode, 1 request", 8, 1, 1, 256},  {"tiny decode, 16 requests", 8, 16, 1, 256},
                           {"tiny decode, long", 8, 1, 1, 4096},      {"tiny prefill", 8, 1, 2048, 2048},
                           {"V3 prefill chunk", 128, 1, 64, 1024}};
constexpr int kLatent = 512, kRope = 64, kWidth = kLatent + kRope, kBlockSize = 64;

double cpu_us() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec * 1e6 + t.tv_nsec * 1e-3;
}

double best_us(const std::function<void()>& run) {
  double best = 1e30;
  for (int round = 0; round < 9; ++round) {
    const double begin = cpu_us();
    int calls = 0;
    do {
      run();
      ++calls;
    } while (cpu_us() - begin < 5000);
    best = std::min(best, (cpu_us() - begin) / calls);
  }
  return best;
}

std::vector<uint16_t> random_bf16(size_t n) {
  std::mt19937 rng(1);
  std::vector<uint16_t> out(n);
  for (auto& x : out) x = static_cast<uint16_t>((rng() & 1) << 15 | (0x3e00 + rng() % 256));
  return out;
}

double ours(const Case& c) {
  const int blocks_per_request = (c.num_keys + kBlockSize - 1) / kBlockSize;
  const int num_blocks = blocks_per_request * c.num_requests, num_rows = c.num_rows * c.num_requests;
  auto cache = random_bf16(static_cast<size_t>(num_blocks) * kBlockSize * kWidth);
  auto q = random_bf16(static_cast<size_t>(num_rows) * c.heads * kWidth);
  std::vector<uint16_t> out(static_cast<size_t>(num_rows) * c.heads * kLatent);
  std::vector<int32_t> blocks(num_blocks), slots(c.num_requests), cu_rows(c.num_requests + 1), positions(num_rows);
  std::iota(blocks.rbegin(), blocks.rend(), 0);
  std::iota(slots.begin(), slots.end(), 0);
  for (int i = 0; i <= c.num_requests; ++i) cu_rows[i] = i * c.num_rows;
  for (int i = 0; i < num_rows; ++i) positions[i] = c.num_keys - c.num_rows + i % c.num_rows;
  StepView view;
  view.num_tokens = num_rows;
  view.num_reqs = c.num_requests;
  view.positions = make_tensor(positions.data(), DType::kI32, {num_rows});
  view.cu_rows = make_tensor(cu_rows.data(), DType::kI32, {c.num_requests + 1});
  view.slots = make_tensor(slots.data(), DType::kI32, {c.num_requests});
  view.block_tables = make_tensor(blocks.data(), DType::kI32, {c.num_requests, blocks_per_request});
  ModelShape shape;
  shape.num_attention_heads = c.heads;
  shape.kv_lora_rank = kLatent;
  shape.qk_rope_head_dim = kRope;
  shape.softmax_scale = 0.05f;
  Limits limits;
  limits.max_num_tokens = num_rows;
  host::ThreadTeam team(1);
  cpu::Attention attention(cpu::best_kernels(), team, shape, limits, kWidth, kLatent);
  const KvLayer layer{make_tensor(cache.data(), DType::kBF16, {num_blocks, kBlockSize, kWidth})};
  const cpu::PagedLatents source(view, layer);
  std::vector<cpu::RowRange> ranges;
  for (int i = 0; i < c.num_requests; ++i) ranges.push_back({i, cu_rows[i], c.num_rows});
  const cpu::AttentionJob job{.ranges = ranges,
                              .source = &source,
                              .num_heads = c.heads,
                              .q = q.data(),
                              .q_row = int64_t{c.heads} * kWidth,
                              .out = out.data(),
                              .out_row = int64_t{c.heads} * kLatent,
                              .out_head = kLatent};
  return best_us([&] { attention.attend(view, job); });
}

double onednn(const Case& c) {
  using namespace dnnl;
  using dt = memory::data_type;
  using tag = memory::format_tag;
  engine cpu(engine::kind::cpu, 0);
  stream queue(cpu);
  const memory::dim m = static_cast<memory::dim>(c.heads) * c.num_rows, n = c.num_keys;
  const memory::desc q({m, kWidth}, dt::bf16, tag::ab), keys({kWidth, n}, dt::bf16, tag::ba);
  const memory::desc scores({m, n}, dt::f32, tag::ab), weights({m, n}, dt::bf16, tag::ab);
  const memory::desc values({n, kLatent}, dt::bf16, memory::dims{kWidth, 1}), out({m, kLatent}, dt::f32, tag::ab);
  const matmul first(matmul::primitive_desc(matmul::desc(q, keys, scores), cpu));
  const matmul second(matmul::primitive_desc(matmul::desc(weights, values, out), cpu));
  auto cache = random_bf16(static_cast<size_t>(n) * kWidth * c.num_requests);
  memory q_data(q, cpu), score_data(scores, cpu), weight_data(weights, cpu), out_data(out, cpu);
  const auto numbers = random_bf16(static_cast<size_t>(m) * std::max<memory::dim>(n, kWidth));
  std::copy_n(numbers.begin(), m * kWidth, static_cast<uint16_t*>(q_data.get_data_handle()));
  std::copy_n(numbers.begin(), m * n, static_cast<uint16_t*>(weight_data.get_data_handle()));
  return best_us([&] {
    for (int r = 0; r < c.num_requests; ++r) {
      uint16_t* rows = cache.data() + static_cast<size_t>(r) * n * kWidth;
      memory key_data(keys, cpu, rows), value_data(values, cpu, rows);
      first.execute(queue, {{DNNL_ARG_SRC, q_data}, {DNNL_ARG_WEIGHTS, key_data}, {DNNL_ARG_DST, score_data}});
      second.execute(queue, {{DNNL_ARG_SRC, weight_data}, {DNNL_ARG_WEIGHTS, value_data}, {DNNL_ARG_DST, out_data}});
    }
    queue.wait();
  });
}

}  // namespace

int main() {
  omp_set_num_threads(1);
  fmt::print("kernels {}, 1 thread; us of CPU time, best of 9; ratio = oneDNN {}.{} matmuls / ours\n",
             cpu::best_kernels().name, dnnl_version()->major, dnnl_version()->minor);
  fmt::print("{:<26} {:>6} {:>6} {:>6} {:>11} {:>11} {:>6} {:>9} {:>7}\n", "case", "heads", "rows", "keys", "oneDNN",
             "ours", "ratio", "GFLOP/s", "GB/s");
  for (const Case& c : kCases) {
    double products = 0;  // that the mask leaves
    for (int i = 0; i < c.num_rows; ++i) products += c.num_keys - c.num_rows + i + 1;
    const double share = products / (static_cast<double>(c.num_rows) * c.num_keys);
    products *= static_cast<double>(c.heads) * (kWidth + kLatent) * c.num_requests;
    const double base = onednn(c) * share, mine = ours(c);
    fmt::print("{:<26} {:>6} {:>6} {:>6} {:>11.1f} {:>11.1f} {:>6.2f} {:>9.1f} {:>7.1f}\n", c.name, c.heads,
               c.num_rows * c.num_requests, c.num_keys, base, mine, base / mine, products * 2e-3 / mine,
               1e-3 * c.num_requests * c.num_keys * kWidth * 2 / mine);
  }
  return 0;
}
