// How fast are the cpu backend's matrix products, against oneDNN's bf16 matmul (weights packed as it likes) on the same
// core in the same run? Weights are cold: as many copies as 128 MiB hold take turns, as layers do.
//   manta_cpu_gemm_bench [threads, default 1]
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <dnnl.hpp>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "backend/cpu/gemm.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/packed_weights.h"

namespace {

using namespace manta;
using namespace manta::backend;
using namespace manta::backend::cpu;

struct Shape {
  const char* name;
  int n, k;
};
// Of DeepSeek-V3, and of the embedded model's kind.
constexpr Shape kShapes[] = {{"q_a_proj", 1536, 7168},         {"expert gate_proj", 2048, 7168},
                             {"expert down_proj", 7168, 2048}, {"kv_b_proj W_UK, a head", 512, 128},
                             {"tiny q_b_proj", 1536, 256},     {"tiny expert gate_proj", 128, 256}};
constexpr int kRows[] = {1, 4, 16, 64, 256};

// With one thread: its CPU time, which other programs on the machine disturb least. With more: wall time.
double now_us(bool wall) {
  timespec t;
  clock_gettime(wall ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec * 1e6 + t.tv_nsec * 1e-3;
}

double best_us(int copies, bool wall, const std::function<void(int)>& run) {
  double best = 1e30;
  for (int round = 0; round < 9; ++round) {
    const double begin = now_us(wall);
    int calls = 0;
    do {
      run(calls++ % copies);
    } while (calls < copies || now_us(wall) - begin < 5000);
    best = std::min(best, (now_us(wall) - begin) / calls);
  }
  return best;
}

struct Weights {
  std::vector<uint16_t> bf16;
  std::vector<uint8_t> fp8;
  std::vector<float> scales;
  WeightView as_bf16, as_fp8;

  Weights(int n, int k) : bf16(static_cast<size_t>(n) * k), fp8(bf16.size()) {
    std::mt19937 rng(1);
    for (auto& x : bf16) x = static_cast<uint16_t>(0x3c00 + rng() % 256);
    for (auto& x : fp8) x = static_cast<uint8_t>(0x20 + rng() % 32);
    const int64_t rows = (n + 127) / 128, columns = (k + 127) / 128;
    scales.assign(rows * columns, 0.01f);
    as_bf16.data = make_tensor(bf16.data(), DType::kBF16, {n, k});
    as_fp8.data = make_tensor(fp8.data(), DType::kF8E4M3, {n, k});
    as_fp8.scale_inv = make_tensor(scales.data(), DType::kF32, {rows, columns});
  }
};

double ours(const WeightView& view, int copies, int m, host::ThreadTeam& team) {
  std::vector<PackedMatrix> packed;
  for (int i = 0; i < copies; ++i) {
    packed.push_back(std::move(PackedMatrix::pack({&view, 0, view.data.shape[0], false})).value());
  }
  Gemm gemm(best_kernels(), team);
  std::vector<uint16_t> a(static_cast<size_t>(m) * packed[0].k(), 0x3c00);
  std::vector<float> out(static_cast<size_t>(m) * packed[0].n());
  return best_us(copies, team.num_threads() > 1, [&](int i) {
    GemmProblem p;
    p.weight = &packed[i];
    p.a = a.data();
    p.lda = packed[i].k();
    p.rows = m;
    p.out_f32 = out.data();
    p.ldo = packed[i].n();
    gemm.run({&p, 1});
  });
}

double onednn(const Weights& weights, int n, int k, int copies, int m, bool wall) {
  using namespace dnnl;
  using dt = memory::data_type;
  using tag = memory::format_tag;
  engine cpu(engine::kind::cpu, 0);
  stream queue(cpu);
  const memory::desc a_desc({m, k}, dt::bf16, tag::ab), out_desc({m, n}, dt::f32, tag::ab);
  const matmul::primitive_desc pd(matmul::desc(a_desc, memory::desc({k, n}, dt::bf16, tag::any), out_desc), cpu);
  const matmul primitive(pd);
  memory stored(memory::desc({k, n}, dt::bf16, tag::ba), cpu, const_cast<uint16_t*>(weights.bf16.data()));
  std::vector<memory> packed;
  for (int i = 0; i < copies; ++i) {
    packed.emplace_back(pd.weights_desc(), cpu);
    reorder(stored, packed.back()).execute(queue, stored, packed.back());
  }
  memory a(a_desc, cpu), out(out_desc, cpu);
  std::fill_n(static_cast<uint16_t*>(a.get_data_handle()), static_cast<size_t>(m) * k, 0x3c00);
  return best_us(copies, wall, [&](int i) {
    primitive.execute(queue, {{DNNL_ARG_SRC, a}, {DNNL_ARG_WEIGHTS, packed[i]}, {DNNL_ARG_DST, out}});
    queue.wait();
  });
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1;
  omp_set_num_threads(threads);
  host::ThreadTeam team(threads);
  fmt::print("kernels {}, {} threads; us per call, best of 7; ratio = oneDNN {}.{} bf16 time / ours\n",
             best_kernels().name, threads, dnnl_version()->major, dnnl_version()->minor);
  fmt::print("{:<24} {:>5} {:>10} {:>10} {:>6} {:>9} {:>10} {:>6} {:>9}\n", "shape", "rows", "oneDNN", "bf16", "ratio",
             "GFLOP/s", "FP8", "ratio", "GFLOP/s");
  for (const Shape& s : kShapes) {
    const Weights weights(s.n, s.k);
    const auto copies = static_cast<int>(std::clamp<size_t>((size_t{128} << 20) / (weights.bf16.size() * 2), 1, 512));
    for (const int m : kRows) {
      const double base = onednn(weights, s.n, s.k, copies, m, threads > 1);
      const double bf16 = ours(weights.as_bf16, copies, m, team), fp8 = ours(weights.as_fp8, copies, m, team);
      const double gflop = 2e-3 * s.n * s.k * m;  // per us: GFLOP/s
      fmt::print("{:<24} {:>5} {:>10.1f} {:>10.1f} {:>6.2f} {:>9.1f} {:>10.1f} {:>6.2f} {:>9.1f}\n", s.name, m, base,
                 bf16, base / bf16, gflop / bf16, fp8, base / fp8, gflop / fp8);
    }
  }
  return 0;
}
