// How fast is each kernel of a decode step, at DeepSeek-V3's shapes of one rank of EP32, beside the best public kernel?
// Times as the baseline's were taken on one H200: a graph of many launches over rotating buffers that no cache holds,
// the median of 20 replays; "sustained" after 0.6 s of itself. Every result is compared with plain loops first.
//   manta_cuda_kernel_bench [--all-cuts] [NAME...]: every way to cut a product, not the chosen one alone; only cases
//   whose name, as "o m=128", begins with one of the words
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/attention/prefill.h"
#include "backend/cuda/common.cuh"
#include "backend/cuda/gemm/tile_gemm.h"
#include "backend/cuda/tensor_map.h"

namespace {

using namespace manta;
using namespace manta::backend::cuda;
using Clock = std::chrono::steady_clock;

void check(cudaError_t code) {
  if (code != cudaSuccess) throw std::runtime_error(cudaGetErrorString(code));
}

std::vector<void*> blocks;
template <typename T>
T* device(int64_t n) {
  void* data = nullptr;
  check(cudaMalloc(&data, n * sizeof(T) + 256));
  blocks.push_back(data);
  return static_cast<T*>(data);
}
void free_all() {
  check(cudaDeviceSynchronize());
  for (void* block : blocks) check(cudaFree(block));
  blocks.clear();
}

__device__ float random_at(int64_t i, uint32_t seed) {  // about normal
  float sum = 0.0f;
  uint64_t x = (i + 1) * 0x9e3779b97f4a7c15ull + seed * 0xd1b54a32d192ed03ull;
  for (int j = 0; j < 4; ++j) {
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27;
    sum += static_cast<float>(x >> 40) / static_cast<float>(1 << 24) - 0.5f;
  }
  return sum * 1.7f;
}
__global__ void fill_kernel(bf16* to, int64_t n, float scale, uint32_t seed) {
  for (int64_t i = blockIdx.x * 256 + threadIdx.x; i < n; i += int64_t{gridDim.x} * 256) {
    to[i] = __float2bfloat16_rn(random_at(i, seed) * scale);
  }
}
__global__ void fill_kernel(uint8_t* to, int64_t n, float scale, uint32_t seed) {
  for (int64_t i = blockIdx.x * 256 + threadIdx.x; i < n; i += int64_t{gridDim.x} * 256) {
    to[i] = to_e4m3(random_at(i, seed) * scale, 1.0f);
  }
}
__global__ void fill_kernel(float* to, int64_t n, float scale, uint32_t seed) {
  for (int64_t i = blockIdx.x * 256 + threadIdx.x; i < n; i += int64_t{gridDim.x} * 256) {
    to[i] = (1.0f + 0.3f * random_at(i, seed)) * scale;
  }
}
uint32_t seeds = 0;
bool all_cuts = false;
template <typename T>
T* random_values(int64_t n, float scale) {
  T* data = device<T>(n);
  fill_kernel<<<1024, 256>>>(data, n, scale, ++seeds);
  check(cudaGetLastError());
  return data;
}

int multiprocessors() {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0));
  return device.multiProcessorCount;
}

// ---- time --------------------------------------------------------------------------------------------------------

struct Time {
  double burst_us = 0, sustained_us = 0;
};

Time time_launches(const std::function<void(int, cudaStream_t)>& launch) {
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  launch(0, stream);
  check(cudaStreamSynchronize(stream));
  const auto begin = Clock::now();
  for (int i = 0; i < 8; ++i) launch(i, stream);
  check(cudaStreamSynchronize(stream));
  const double us = std::chrono::duration<double, std::micro>(Clock::now() - begin).count() / 8;
  const int count = std::clamp(static_cast<int>(2000 / us), 8, 400);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < count; ++i) launch(i, stream);
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&exec, graph, 0));
  check(cudaGraphLaunch(exec, stream));
  check(cudaStreamSynchronize(stream));
  cudaEvent_t events[2];
  for (auto& e : events) check(cudaEventCreate(&e));
  const auto median = [&] {
    std::vector<float> ms(20);
    for (float& x : ms) {
      check(cudaEventRecord(events[0], stream));
      check(cudaGraphLaunch(exec, stream));
      check(cudaEventRecord(events[1], stream));
      check(cudaEventSynchronize(events[1]));
      check(cudaEventElapsedTime(&x, events[0], events[1]));
    }
    std::sort(ms.begin(), ms.end());
    return ms[10] * 1000.0 / count;
  };
  Time time;
  time.burst_us = median();
  if (all_cuts) return time;
  const auto hot = Clock::now();
  while (Clock::now() - hot < std::chrono::milliseconds(600)) {
    for (int i = 0; i < 20; ++i) check(cudaGraphLaunch(exec, stream));
    check(cudaStreamSynchronize(stream));
  }
  time.sustained_us = median();
  check(cudaGraphExecDestroy(exec));
  check(cudaGraphDestroy(graph));
  check(cudaStreamDestroy(stream));
  return time;
}

void report(const std::string& name, const Time& t, double flops, double bytes, double peer_us, double error) {
  std::printf("%-44s %7.1f us %7.1f sustained %5.0f TFLOP/s %4.0f GB/s error %.0e", name.c_str(), t.burst_us,
              t.sustained_us, flops / t.burst_us / 1e6, bytes / t.burst_us / 1e3, error);
  if (peer_us > 0) std::printf(" peer %.1f (H200): %.2f x", peer_us, peer_us / t.burst_us);
  std::printf("%s\n", error < 5e-3 ? "" : "  WRONG");
  std::fflush(stdout);
}

// |a - b| / |b| over everything.
__global__ void difference_kernel(const bf16* a, const bf16* b, int64_t n, double* out) {
  double difference = 0, size = 0;
  for (int64_t i = blockIdx.x * 256 + threadIdx.x; i < n; i += int64_t{gridDim.x} * 256) {
    const double x = __bfloat162float(a[i]), y = __bfloat162float(b[i]);
    difference += (x - y) * (x - y);
    size += y * y;
  }
  atomicAdd(&out[0], difference);
  atomicAdd(&out[1], size);
}
double relative_error(const bf16* a, const bf16* b, int64_t n) {
  double* sums = device<double>(2);
  check(cudaMemset(sums, 0, 16));
  difference_kernel<<<512, 256>>>(a, b, n, sums);
  double host[2];
  check(cudaMemcpy(host, sums, 16, cudaMemcpyDeviceToHost));
  const double e = std::sqrt(host[0] / host[1]);
  return e == e ? e : INFINITY;
}

// ---- products ----------------------------------------------------------------------------------------------------

struct Product {
  const char* name;
  int m, n, k;
  int parts = 1, groups = 0;  // groups > 0: masked, m rows each
  bool fp8 = true;
  int batches = 1;
  double peer_us = 0;
};

__global__ void reference_kernel(BlockGemm g, GemmWeight w, int64_t a_first, int64_t c_first, int part, bf16* c) {
  const int column = blockIdx.x * 128 + threadIdx.x, row = blockIdx.y, batch = blockIdx.z;
  if (column >= g.n) return;
  float sum = 0.0f;
  const int pieces = (g.k + 127) / 128;
  for (int p = 0; p < pieces; ++p) {
    float part_sum = 0.0f;
    for (int k = p * 128; k < min(g.k, p * 128 + 128); ++k) {
      float x, y;
      if (g.w_fp8) {
        const auto e4m3 = [](const void* from, int64_t at) {
          return __half2float(__half(__nv_cvt_fp8_to_halfraw(static_cast<const uint8_t*>(from)[at], __NV_E4M3)));
        };
        x = e4m3(g.a, (a_first + row) * g.a_stride + k);
        y = e4m3(w.data, int64_t{column} * g.k + k);
      } else {
        x = __bfloat162float(static_cast<const bf16*>(g.a)[(a_first + row) * g.a_stride + batch * g.a_batch + k]);
        y = __bfloat162float(static_cast<const bf16*>(w.data)[batch * g.w_batch + int64_t{column} * g.k + k]);
      }
      part_sum += x * y;
    }
    sum += g.w_fp8 ? part_sum * g.a_scale[p * g.a_scale_stride + a_first + row] * w.scale[column / 128 * pieces + p]
                   : part_sum;
  }
  c[(c_first + row) * g.c_stride + batch * g.c_batch + int64_t{part} * g.n + column] = __float2bfloat16_rn(sum);
}

CUtensorMap* device_maps(MapShape shape) {
  constexpr int kCount = std::size(kWeightBoxRows);
  auto* to = device<CUtensorMap>(kCount);
  for (int i = 0; i < kCount; ++i) {
    shape.box_rows = kWeightBoxRows[i];
    const CUtensorMap map = encode_map(shape);
    check(cudaMemcpy(to + i, &map, sizeof(map), cudaMemcpyHostToDevice));
  }
  return to;
}

// Every way to cut a product that makes sense for it.
std::vector<TileChoice> cuts(const BlockGemm& g, bool grouped) {
  std::vector<TileChoice> shapes = {{!g.w_fp8 && g.m > 128 ? 256 : 128, 128}};
  if (g.w_fp8) shapes.insert(shapes.end(), {{128, 192}, {128, 96}});
  if (g.w_fp8 && !grouped) shapes.insert(shapes.end(), {{128, 112}, {128, 64}, {128, 32}});
  std::vector<TileChoice> out;
  for (const TileChoice& c : shapes) {
    for (const int split : {1, 2, 4}) {
      const int tiles = (g.m + c.rows - 1) / c.rows * ((g.n + c.columns - 1) / c.columns) * g.num_parts * g.num_batches;
      if (split > 1 && (grouped || tiles * split > 140 || g.k / 128 < 4 * split)) continue;
      out.push_back({c.rows, c.columns, split});
    }
  }
  return out;
}

class ProductRun {
 public:
  explicit ProductRun(const Product& p) : p_(p), groups_(std::max(p.groups, 1)), plane_((p.m + 127) / 128 * 256) {
    rows_ = p.groups > 0 ? int64_t{groups_} * plane_ : p.m;
    g_.w_fp8 = p.fp8;
    g_.n = p.n;
    g_.k = p.k;
    g_.m = p.m;
    g_.num_parts = p.parts;
    g_.a_stride = p.batches > 1 ? int64_t{p.batches} * p.k : p.k;
    g_.c_stride = p.batches > 1 ? int64_t{p.batches} * p.n : int64_t{p.parts} * p.n;
    g_.c = device<bf16>(rows_ * g_.c_stride);
    if (p.batches > 1) {
      g_.num_batches = p.batches;
      g_.a_batch = p.k;
      g_.w_batch = int64_t{p.n} * p.k;
      g_.c_batch = p.n;
    }
    make_rows();
    make_weights();
    if (!tile_gemm_takes(g_, weights_[0].data(), is_grouped())) throw std::runtime_error("not taken");
    make_expected();
  }

  void run() {
    const TileChoice chosen = choose_tiles(g_, is_grouped());
    for (const TileChoice& c : all_cuts ? cuts(g_, is_grouped()) : std::vector<TileChoice>{chosen}) {
      const auto launch = [&](int i, cudaStream_t stream) {
        BlockGemm h = g_;
        h.a = a_[i % 2];
        tile_gemm(h, weights_[i % weights_.size()].data(), is_grouped(), c, stream);
      };
      check(cudaMemset(g_.c, 0x7f, rows_ * g_.c_stride * 2));
      launch(0, nullptr);
      check(cudaDeviceSynchronize());
      const double error = error_of_result();
      const bool is_chosen = c.rows == chosen.rows && c.columns == chosen.columns && c.split == chosen.split;
      const double all_rows = double(p_.m) * groups_;
      report(std::string(p_.name) + " m=" + std::to_string(p_.m) + " " + std::to_string(c.rows) + "x" +
                 std::to_string(c.columns) + (c.split > 1 ? " split " + std::to_string(c.split) : "") +
                 (is_chosen ? " *" : ""),
             time_launches(launch), 2.0 * all_rows * p_.n * p_.parts * p_.k * p_.batches,
             double(set_bytes_) + all_rows * (g_.a_stride * elem_bytes() + g_.c_stride * 2), p_.peer_us, error);
    }
  }

 private:
  bool is_grouped() const { return p_.groups > 0; }
  int elem_bytes() const { return p_.fp8 ? 1 : 2; }

  void make_rows() {
    for (int i = 0; i < 2; ++i) {
      a_.push_back(p_.fp8 ? static_cast<const void*>(random_values<uint8_t>(rows_ * g_.a_stride, 100.0f))
                          : random_values<bf16>(rows_ * g_.a_stride, 1.0f));
    }
    g_.a = a_[0];
    g_.a_scale_stride = (rows_ + 3) / 4 * 4;
    if (p_.fp8) g_.a_scale = random_values<float>(g_.a_scale_stride * (p_.k / 128), 0.01f);
    if (!is_grouped()) return;
    const std::vector<int32_t> counts(groups_, p_.m);
    auto* to = device<int32_t>(groups_);
    check(cudaMemcpy(to, counts.data(), groups_ * 4, cudaMemcpyHostToDevice));
    g_.groups.counts = to;
    g_.groups.masked = true;
    g_.groups.num_groups = groups_;
    g_.groups.plane = g_.groups.window_rows = plane_;
  }

  // As many sets as no cache holds.
  void make_weights() {
    const int64_t values = int64_t{p_.n} * p_.k * p_.batches;
    set_bytes_ = values * elem_bytes() * p_.parts * groups_;
    weights_.resize(std::clamp<int>(static_cast<int>((400 << 20) / set_bytes_) + 1, 2, 24));
    for (auto& set : weights_) {
      for (int i = 0; i < groups_ * p_.parts; ++i) {
        GemmWeight w;
        w.data = p_.fp8 ? static_cast<const void*>(random_values<uint8_t>(values, 100.0f))
                        : random_values<bf16>(values, 0.05f);
        if (p_.fp8) w.scale = random_values<float>(int64_t{(p_.n + 127) / 128} * (p_.k / 128), 0.001f);
        w.maps = device_maps({.data = w.data,
                              .elem_bytes = elem_bytes(),
                              .columns = p_.k,
                              .rows = int64_t{p_.n} * p_.batches,
                              .row_stride = p_.k});
        set.push_back(w);
      }
    }
  }

  void make_expected() {
    expected_ = device<bf16>(rows_ * g_.c_stride);
    for (int group = 0; group < groups_; ++group) {
      for (int part = 0; part < p_.parts; ++part) {
        const int64_t first = int64_t{group} * plane_;
        reference_kernel<<<dim3((p_.n + 127) / 128, p_.m, p_.batches), 128>>>(g_, weights_[0][group * p_.parts + part],
                                                                              first, first, part, expected_);
      }
    }
    check(cudaDeviceSynchronize());
  }

  // Of the worst group; infinite when a row that no group has was written.
  double error_of_result() {
    const auto* c = static_cast<const bf16*>(g_.c);
    double error = 0;
    for (int group = 0; group < groups_; ++group) {
      const int64_t at = int64_t{group} * plane_ * g_.c_stride, n = int64_t{p_.m} * g_.c_stride;
      error = std::max(error, relative_error(c + at, expected_ + at, n));
      std::vector<uint16_t> rest(is_grouped() ? (plane_ - p_.m) * g_.c_stride : 0);
      check(cudaMemcpy(rest.data(), c + at + n, rest.size() * 2, cudaMemcpyDeviceToHost));
      if (std::any_of(rest.begin(), rest.end(), [](uint16_t x) { return x != 0x7f7f; })) error = INFINITY;
    }
    return error;
  }

  const Product p_;
  const int groups_, plane_;
  int64_t rows_ = 0, set_bytes_ = 0;
  BlockGemm g_;
  std::vector<const void*> a_;
  std::vector<std::vector<GemmWeight>> weights_;
  bf16* expected_ = nullptr;
};

void run_product(const Product& p) {
  ProductRun(p).run();
  free_all();
}

// ---- attention ---------------------------------------------------------------------------------------------------

void run_attention(int rows, int context, double peer_us, bool uneven = false) {
  constexpr int kHeads = 128, kWidth = 576, kBlock = 64;
  const int blocks_per_row = context / kBlock + 1, num_multiprocessors = multiprocessors();
  const int64_t cache_rows = int64_t{rows} * blocks_per_row * kBlock;
  const int sets = std::clamp<int>(static_cast<int>((400 << 20) / (cache_rows * kWidth * 2)) + 1, 2, 16);
  std::vector<bf16*> queries, caches;
  for (int i = 0; i < 2; ++i) queries.push_back(random_values<bf16>(int64_t{rows} * kHeads * kWidth, 1.0f));
  for (int i = 0; i < sets; ++i) caches.push_back(random_values<bf16>(cache_rows * kWidth, 1.0f));
  std::vector<int32_t> positions(rows), identity(rows), tables(int64_t{rows} * blocks_per_row);
  for (int i = 0; i < rows; ++i) {
    identity[i] = i;
    positions[i] = uneven ? static_cast<int>((i * 7919ll) % context) : context - 1;
    for (int b = 0; b < blocks_per_row; ++b) tables[i * blocks_per_row + b] = b * rows + (i * 31 + 7) % rows;
  }
  const auto upload = [](const std::vector<int32_t>& from) {
    auto* to = device<int32_t>(from.size());
    check(cudaMemcpy(to, from.data(), from.size() * 4, cudaMemcpyHostToDevice));
    return to;
  };
  MlaAttention a;
  a.queries = queries[0];
  a.cache = caches[0];
  a.cache_rows = cache_rows;
  a.positions = upload(positions);
  a.row_req = a.req_slot = upload(identity);
  a.block_tables = upload(tables);
  a.max_blocks = blocks_per_row;
  a.block_size = kBlock;
  a.softmax_scale = 0.05f;
  a.num_rows = rows;
  a.heads = kHeads;
  a.rope = 64;
  a.latent = 512;
  a.max_extra_items = num_multiprocessors;
  auto* items = device<int4>(rows + a.max_extra_items);
  auto* pieces = device<int2>(rows);
  a.num_planned = rows;
  plan_mla({.positions = a.positions,
            .num_rows = rows,
            .num_planned = rows,
            .num_slots = num_multiprocessors / mla_blocks_per_item(kHeads),
            .max_extra_items = a.max_extra_items,
            .items = items,
            .row_pieces = pieces},
           nullptr);
  a.partial_out = device<float>(int64_t{2} * a.max_extra_items * kHeads * 512);
  a.partial_lse = device<float>(int64_t{2} * a.max_extra_items * kHeads);
  const int64_t n = int64_t{rows} * kHeads * 512;
  bf16* expected = device<bf16>(n);
  a.out = expected;
  mla_plain(a, nullptr);
  a.out = device<bf16>(n);
  check(cudaMemset(a.out, 0x7f, n * 2));
  a.items = items;
  a.row_pieces = pieces;
  mla_attention(a, nullptr);
  check(cudaDeviceSynchronize());
  const double error = relative_error(a.out, expected, n);
  const Time t = time_launches([&](int i, cudaStream_t stream) {
    MlaAttention b = a;
    b.queries = queries[i % 2];
    b.cache = caches[i % sets];
    mla_attention(b, stream);
  });
  double seen = 0;
  for (const int32_t p : positions) seen += p + 1;
  report("mla B=" + std::to_string(rows) + " context=" + std::to_string(context) + (uneven ? " uneven" : ""), t,
         2.0 * kHeads * seen * (576 + 512), seen * kWidth * 2 + double(n) * 2 + double(rows) * kHeads * kWidth * 2,
         peer_us, error);
  free_all();
}

// ---- prefill -----------------------------------------------------------------------------------------------------

// Absorbed and in float32, for `rows` of one sequence: what expanding must come to.
__global__ void prefill_reference(PrefillPassLaunch p, int first_latent, int first_position, const int32_t* rows,
                                  bf16* out) {
  __shared__ float query[576], weights[128], sums[512], scratch[33];
  const int row = rows[blockIdx.x], head = blockIdx.y, position = first_position + row;
  const bf16* q = p.q + (int64_t{row} * p.heads + head) * 192;
  for (int c = threadIdx.x; c < 576; c += 128) {
    float sum = 0.0f;
    if (c < 512) {
      const bf16* w = p.key_up + (int64_t{head} * 512 + c) * 128;
      for (int i = 0; i < 128; ++i) sum += __bfloat162float(w[i]) * __bfloat162float(q[i]);
    } else {
      sum = __bfloat162float(q[128 + c - 512]);
    }
    query[c] = sum;
  }
  float acc[4] = {}, max = -INFINITY, total = 0.0f;
  for (int first = 0; first <= position; first += 128) {
    __syncthreads();
    const int at = first + threadIdx.x;
    float score = -INFINITY;
    if (at <= position) {
      score = 0.0f;
      const bf16* latent = p.latents + int64_t{first_latent + at} * 576;
      for (int c = 0; c < 576; ++c) score += query[c] * __bfloat162float(latent[c]);
      score *= p.softmax_scale;
    }
    float best = warp_max(score);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = best;
    __syncthreads();
    for (int w = 0; w < 4; ++w) best = fmaxf(best, scratch[w]);
    best = fmaxf(best, max);
    const float shrink = expf(max - best);
    max = best;
    weights[threadIdx.x] = at <= position ? expf(score - max) : 0.0f;
    __syncthreads();
    total *= shrink;
    for (float& x : acc) x *= shrink;
    for (int i = 0; i < 128 && first + i <= position; ++i) {
      total += weights[i];
      const bf16* latent = p.latents + int64_t{first_latent + first + i} * 576;
      for (int j = 0; j < 4; ++j) acc[j] += weights[i] * __bfloat162float(latent[threadIdx.x + j * 128]);
    }
  }
  for (int j = 0; j < 4; ++j) sums[threadIdx.x + j * 128] = acc[j] / total;
  __syncthreads();
  const bf16* w = p.value_up + (int64_t{head} * 128 + threadIdx.x) * 512;
  float sum = 0.0f;
  for (int c = 0; c < 512; ++c) sum += __bfloat162float(w[c]) * sums[c];
  out[(int64_t{blockIdx.x} * p.heads + head) * 128 + threadIdx.x] = __float2bfloat16_rn(sum);
}

__global__ void take_rows(const bf16* from, const int32_t* rows, int width, bf16* to) {
  for (int i = threadIdx.x; i < width; i += 256) {
    to[int64_t{blockIdx.x} * width + i] = from[int64_t{rows[blockIdx.x]} * width + i];
  }
}

void run_prefill(int sequences, int length, double attention_us, double up_us) {
  constexpr int kHeads = 128, kBlock = 64;
  const int t = sequences * length, blocks_per_row = length / kBlock + 1;
  std::vector<manta::backend::host::Piece> pieces;
  std::vector<int32_t> tables(sequences * blocks_per_row), sampled;
  for (int i = 0; i < sequences; ++i) {
    manta::backend::host::Piece piece;
    piece.slot = i;
    piece.first_row = i * length;
    piece.num_rows = length;
    piece.first_position = 0;
    pieces.push_back(piece);
    for (int b = 0; b < blocks_per_row; ++b) tables[i * blocks_per_row + b] = b * sequences + i;
  }
  const PrefillPlan plan = plan_prefill(pieces, t, (t + 127) / 128 * 128);
  if (plan.passes.size() != 1 || plan.num_absorbed > 0) throw std::runtime_error("a plan of one pass is what is timed");
  const auto upload = [](const auto& from) {
    using T = std::decay_t<decltype(from[0])>;
    auto* to = device<T>(from.size());
    check(cudaMemcpy(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
    return to;
  };
  PrefillPassLaunch p;
  p.cache = random_values<bf16>(int64_t{sequences} * blocks_per_row * kBlock * 576, 1.0f);
  p.block_tables = upload(tables);
  p.max_blocks = blocks_per_row;
  p.block_size = kBlock;
  p.segments = upload(plan.segments);
  p.num_segments = static_cast<int>(plan.segments.size());
  p.num_rows = plan.passes[0].num_rows;
  p.key_up = random_values<bf16>(int64_t{kHeads} * 512 * 128, 0.05f);
  p.value_up = random_values<bf16>(int64_t{kHeads} * 512 * 128, 0.05f);
  p.heads = kHeads;
  p.q = random_values<bf16>(int64_t{t} * kHeads * 192, 1.0f);
  p.num_q_rows = t;
  p.items = upload(plan.items);
  p.num_items = static_cast<int>(plan.items.size());
  p.softmax_scale = 0.1f;
  p.out = device<bf16>(int64_t{t} * kHeads * 128);
  p.latents = device<bf16>(int64_t{p.num_rows} * 576);
  p.keys = device<bf16>(int64_t{p.num_rows} * kHeads * 128);
  p.values = device<bf16>(int64_t{p.num_rows} * kHeads * 128);
  p.lse = device<float>(int64_t{t} * kHeads);
  p.next_item = device<int32_t>(1);
  check(cudaMemset(p.out, 0x7f, int64_t{t} * kHeads * 128 * 2));
  gather_latents(p, nullptr);
  expand_latents(p, nullptr);
  attend_expanded(p, nullptr);
  check(cudaDeviceSynchronize());
  for (int i = 0; i < 64; ++i) sampled.push_back((i * 7919 + 13) % length);
  sampled[0] = 0;
  sampled[1] = length - 1;
  double error = 0;
  const auto* rows = upload(sampled);
  auto *expected = device<bf16>(64 * kHeads * 128), *got = device<bf16>(64 * kHeads * 128);
  for (int i = 0; i < sequences; ++i) {
    PrefillPassLaunch of_sequence = p;
    of_sequence.q += int64_t{i} * length * kHeads * 192;
    prefill_reference<<<dim3(64, kHeads), 128>>>(of_sequence, plan.segments[i].row, 0, rows, expected);
    take_rows<<<64, 256>>>(p.out + int64_t{i} * length * kHeads * 128, rows, kHeads * 128, got);
    check(cudaDeviceSynchronize());
    error = std::max(error, relative_error(got, expected, 64 * kHeads * 128));
  }
  const std::string shape = " " + std::to_string(sequences) + " x " + std::to_string(length);
  const double pairs = sequences * (double(length) * length / 2);
  report("prefill gather" + shape, time_launches([&](int, cudaStream_t s) { gather_latents(p, s); }), 0,
         double(p.num_rows) * 576 * 4, 0, error);
  report("prefill expand" + shape, time_launches([&](int, cudaStream_t s) { expand_latents(p, s); }),
         2.0 * p.num_rows * 512 * 256 * kHeads, double(p.num_rows) * (576 * 2 + kHeads * 256 * 2), up_us, error);
  report("prefill attend" + shape, time_launches([&](int, cudaStream_t s) {
           check(cudaMemsetAsync(p.next_item, 0, 4, s));
           attend_expanded(p, s);
         }),
         2.0 * kHeads * pairs * 320, double(t) * kHeads * (192 + 128 + 128 + 128) * 2, attention_us, error);
  free_all();
}

const Product kProducts[] = {
    {"q_a", 128, 1536, 7168},
    {"kv_a", 128, 576, 7168},
    {"q_b", 128, 24576, 1536, 1, 0, true, 1, 14.6},
    {"q_b", 256, 24576, 1536, 1, 0, true, 1, 19.9},
    {"q_b", 4096, 24576, 1536, 1, 0, true, 1, 233.3},
    {"o", 128, 7168, 16384, 1, 0, true, 1, 41.7},
    {"o", 256, 7168, 16384, 1, 0, true, 1, 57.2},
    {"o", 4096, 7168, 16384, 1, 0, true, 1, 652.7},
    {"shared_gate_up", 128, 2048, 7168, 2, 0, true, 1, 12.2},
    {"shared_gate_up", 256, 2048, 7168, 2, 0, true, 1, 16.7},
    {"shared_down", 128, 7168, 2048, 1, 0, true, 1, 8.4},
    {"shared_down", 256, 7168, 2048, 1, 0, true, 1, 10.6},
    {"dense_gate_up", 128, 18432, 7168, 2, 0, true, 1, 74.0},
    {"dense_gate_up", 256, 18432, 7168, 2, 0, true, 1, 104.1},
    {"dense_down", 128, 7168, 18432, 1, 0, true, 1, 46.7},
    {"dense_down", 256, 7168, 18432, 1, 0, true, 1, 64.1},
    {"moe_gate_up masked", 16, 2048, 7168, 2, 9, true, 1, 71.2},
    {"moe_gate_up masked", 114, 2048, 7168, 2, 9, true, 1, 75.0},
    {"moe_gate_up masked", 228, 2048, 7168, 2, 9, true, 1, 106.6},
    {"moe_down masked", 114, 7168, 2048, 1, 9, true, 1, 44.3},
    {"moe_down masked", 228, 7168, 2048, 1, 9, true, 1, 65.4},
    {"moe_gate_up masked", 1820, 2048, 7168, 2, 9, true, 1, 723.7},
    {"W_UK", 128, 512, 128, 1, 0, false, 128, 12.5},
    {"W_UK", 256, 512, 128, 1, 0, false, 128, 18.2},
    {"W_UV", 128, 128, 512, 1, 0, false, 128, 12.1},
    {"W_UV", 256, 128, 512, 1, 0, false, 128, 17.2},
    {"lm_head", 128, 129280, 7168, 1, 0, false, 1, 443.4},
    {"lm_head", 256, 129280, 7168, 1, 0, false, 1, 632.3},
};
struct Attention {
  int rows, context;
  double peer_us;
  bool uneven = false;
};
const Attention kAttentions[] = {{128, 2048, 120.4}, {128, 4096, 225.3}, {256, 2048, 238.7},   {256, 4096, 463.5},
                                 {64, 4096, 112.7},  {32, 4096, 68.8},   {128, 4096, 0, true}, {7, 4091, 0}};

}  // namespace

int main(int argc, char** argv) try {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0));
  std::printf("%s; peers: DeepGEMM, cuBLAS, FlashMLA on an H200\n", device.name);
  if (const Status status = prepare_tensor_maps(); !status.ok()) throw std::runtime_error(status.error().message);
  if (prepare_tile_gemm() != 0 || prepare_mla() != 0 || prepare_prefill() != 0) throw std::runtime_error("prepare");
  if (argc > 1 && std::string(argv[1]) == "--all-cuts") {
    all_cuts = true;
    --argc;
    ++argv;
  }
  const auto wanted = [&](const std::string& name) {
    for (int i = 1; i < argc; ++i) {
      if (name.rfind(argv[i], 0) == 0) return true;
    }
    return argc < 2;
  };
  for (const Attention& a : kAttentions) {
    if (wanted("mla")) run_attention(a.rows, a.context, a.peer_us, a.uneven);
  }
  if (wanted("prefill")) {
    run_prefill(1, 4096, 978.2, 0);
    run_prefill(2, 4096, 2286.8, 295.5 + 203.1);
    run_prefill(3, 1000, 0, 0);
    run_prefill(1, 16384, 15988, 0);
  }
  for (const Product& p : kProducts) {
    if (wanted(p.name + (" m=" + std::to_string(p.m)))) run_product(p);
  }
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "manta_cuda_kernel_bench: %s\n", e.what());
  return 1;
}
