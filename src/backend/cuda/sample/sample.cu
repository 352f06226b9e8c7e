#include <climits>

#include "backend/cuda/sample/block.cuh"
#include "backend/cuda/sample/sample.h"
#include "sample/philox.h"

namespace manta::backend::cuda {
namespace {

constexpr float kMasked = -INFINITY;

// exp in double, rounded once: the float that a correctly rounded expf gives.
__device__ float exact_exp(float x) {
  return static_cast<float>(exp(static_cast<double>(x)));
}

__device__ double gumbel(uint64_t seed, int position, int id) {
  return -log(-log(sample::open_uniform(sample::token_bits(seed, position, id))));
}

// One row on its way to a token; every thread of the block holds a copy.
struct Row {
  const SampleRows& a;
  SampleShared& s;
  const SlotSampling& p;
  const int32_t* tokens;  // the sequence so far
  int length, num_prompt;
  const uint32_t* bitmask;  // null: all allowed
  const uint32_t* allowed;  // likewise
  float* z;                 // [V]
  int32_t* marks;           // [V]
};

__device__ bool has_penalties(const SlotSampling& p) {
  return p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f || p.repetition_penalty != 1.0f;
}

__device__ bool changes_logits(const Row& r) {
  const SlotSampling& p = r.p;
  return r.bitmask != nullptr || r.allowed != nullptr || p.num_bad_words > 0 || p.min_tokens > 0 || p.num_biases > 0 ||
         has_penalties(p);
}

// After a barrier, like all that follow: each sees what the one before wrote.
__device__ void mask_lists(const Row& r) {
  const SlotSampling& p = r.p;
  const int32_t* end_tokens = p.lists + 2 * p.num_biases;
  const int num_output = r.length - r.num_prompt;
  if (threadIdx.x == 0) {  // a few words; they differ in length, so one thread walks them
    const int32_t* word = end_tokens + p.num_end_tokens;
    for (int w = 0; w < p.num_bad_words; ++w) {
      const int size = word[0], prefix = size - 1;
      bool matches = prefix <= num_output;
      for (int i = 0; matches && i < prefix; ++i) matches = word[1 + i] == r.tokens[r.length - prefix + i];
      if (matches) r.z[word[size]] = kMasked;
      word += 1 + size;
    }
  }
  if (num_output < p.min_tokens) {
    for (int i = threadIdx.x; i < p.num_end_tokens; i += kSampleThreads) r.z[end_tokens[i]] = kMasked;
  }
  __syncthreads();
  if (threadIdx.x == 0) {  // in order: an id may come twice
    for (int i = 0; i < p.num_biases; ++i) r.z[p.lists[2 * i]] += __int_as_float(p.lists[2 * i + 1]);
  }
  __syncthreads();
}

__device__ void penalize(const Row& r) {
  const SlotSampling& p = r.p;
  if (p.repetition_penalty != 1.0f) {
    for (int i = threadIdx.x; i < r.length; i += kSampleThreads) {
      const int id = r.tokens[i];
      if (atomicAdd(&r.marks[id], 1) != 0) continue;
      const float x = r.z[id];
      r.z[id] =
          fminf(x > 0.0f ? __fdiv_rn(x, p.repetition_penalty) : __fmul_rn(x, p.repetition_penalty), 3.402823466e38f);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < r.length; i += kSampleThreads) r.marks[r.tokens[i]] = 0;
    __syncthreads();
  }
  for (int i = r.num_prompt + threadIdx.x; i < r.length; i += kSampleThreads) atomicAdd(&r.marks[r.tokens[i]], 1);
  __syncthreads();
  for (int i = r.num_prompt + threadIdx.x; i < r.length; i += kSampleThreads) {
    const int id = r.tokens[i], count = atomicExch(&r.marks[id], 0);
    if (count == 0) continue;  // another thread has it
    r.z[id] = __fsub_rn(r.z[id], __fmul_rn(p.frequency_penalty, static_cast<float>(count)));
    r.z[id] = __fsub_rn(r.z[id], p.presence_penalty);
  }
  __syncthreads();
}

__device__ void adjust(const Row& r, const float* logits) {
  for (int i = threadIdx.x; i < r.a.vocab_size; i += kSampleThreads) {
    bool keep = true;
    if (r.bitmask != nullptr) keep = r.bitmask[i / 32] >> (i % 32) & 1;
    if (r.allowed != nullptr) keep = keep && (r.allowed[i / 32] >> (i % 32) & 1);
    r.z[i] = keep ? logits[i] : kMasked;
  }
  __syncthreads();
  mask_lists(r);
  if (has_penalties(r.p)) penalize(r);
}

// What the filters leave: tokens with (z, lower id first) at or before the cut.
struct Cut {
  uint32_t key = 0;
  uint32_t id_key = 0;  // of those with `key`: ~id at least this
  float lowest = kMasked;
  __device__ bool keeps(float z, int id) const {
    const uint32_t k = ordered(z);
    return z >= lowest && (k > key || (k == key && ~static_cast<uint32_t>(id) >= id_key));
  }
};

// f(id) for the tokens of this thread that may still be drawn.
template <typename F>
__device__ __forceinline__ void for_each_candidate(const Row& r, F&& f) {
  if (r.s.num_candidates < 0) {
    for (int i = threadIdx.x; i < r.a.vocab_size; i += kSampleThreads) f(i);
  } else {
    for (int i = threadIdx.x; i < r.s.num_candidates; i += kSampleThreads) f(r.s.candidate[i]);
  }
}

// Of the tokens that `kept` leaves and whose key is `key`, the first `count` by id.
__device__ uint32_t cut_ids(const Row& r, const Cut& kept, uint32_t key, unsigned long long count) {
  unsigned long long above;
  return find_cut(count, above, r.s, [&](auto&& item) {
    for_each_candidate(r, [&](int i) {
      if (ordered(r.z[i]) == key && kept.keeps(r.z[i], i)) item(~static_cast<uint32_t>(i), 1);
    });
  });
}

__device__ unsigned long long mass_of(float z) {
  return static_cast<unsigned long long>(static_cast<double>(exact_exp(z)) * 0x1p44);
}

// Tokens below `lowest` are out: the rest fit in shared memory unless many are alike.
__device__ void gather_candidates(const Row& r, float lowest) {
  SampleShared& s = r.s;
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
#pragma unroll 4
  for (int i = threadIdx.x; i < r.a.vocab_size; i += kSampleThreads) {
    if (r.z[i] < lowest) continue;
    const int at = atomicAdd(&count, 1);
    if (at < kMostCandidates) s.candidate[at] = i;
  }
  __syncthreads();
  if (threadIdx.x == 0) s.num_candidates = count <= kMostCandidates ? count : -1;
  __syncthreads();
}

__device__ void keep_top_k(const Row& r, float max_of_thread, Cut& cut) {
  unsigned long long above;
  if (r.p.top_k <= kSampleThreads) {
    // At least top_k tokens reach the top_k-th largest of the threads' maxima: nothing below it needs to be looked at.
    const uint32_t key = find_cut(r.p.top_k, above, r.s, [&](auto&& item) {
      if (max_of_thread > kMasked) item(ordered(max_of_thread), 1);
    });
    if (key != 0) {
      cut.lowest = fmaxf(cut.lowest, unordered(key));
      gather_candidates(r, cut.lowest);
    }
  }
  const Cut before = cut;
  const uint32_t key = find_cut(r.p.top_k, above, r.s, [&](auto&& item) {
    for_each_candidate(r, [&](int i) {
      if (before.keeps(r.z[i], i)) item(ordered(r.z[i]), 1);
    });
  });
  if (key == 0) return;  // fewer than top_k are there
  cut.id_key = cut_ids(r, before, key, r.p.top_k - above);
  cut.key = key;
}

// The shortest run of the most likely tokens whose probability reaches top_p; at least one.
__device__ void keep_top_p(const Row& r, Cut& cut) {
  const Cut before = cut;
  const auto masses = [&](auto&& item) {
    for_each_candidate(r, [&](int i) {
      if (!before.keeps(r.z[i], i)) return;
      const unsigned long long mass = mass_of(r.z[i]);
      if (mass > 0) item(ordered(r.z[i]), mass);
    });
  };
  if (threadIdx.x == 0) r.s.total = 0;
  __syncthreads();
  unsigned long long mine = 0;
  masses([&](uint32_t, unsigned long long mass) { mine += mass; });
  atomicAdd(&r.s.total, mine);
  __syncthreads();
  const double wanted = static_cast<double>(r.p.top_p) * static_cast<double>(r.s.total);
  const auto target = max(static_cast<unsigned long long>(ceil(wanted)), 1ull);
  unsigned long long above;
  const uint32_t key = find_cut(target, above, r.s, masses);
  if (key == 0) return;
  const float z = unordered(key);
  const unsigned long long mass = max(mass_of(z), 1ull);
  cut.id_key = cut_ids(r, before, key, (target - above + mass - 1) / mass);
  cut.key = key;
}

// Temperature, filters and the Gumbel-max draw over adjusted logits `x`, of which `likeliest` is the argmax. The
// filters stand in find_cut; of what is left only tokens that can still win draw their noise.
__device__ int draw(const Row& r, const float* x, int likeliest) {
  const SlotSampling& p = r.p;
  const float max = x[likeliest];
  if (threadIdx.x == 0) r.s.num_candidates = -1;
  __syncthreads();
  float max_of_thread = kMasked;
  constexpr int kAtOnce = 4;  // loads before a store: x may be z itself
  for (int first = threadIdx.x; first < r.a.vocab_size; first += kAtOnce * kSampleThreads) {
    float v[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = first + j * kSampleThreads;
      v[j] = i < r.a.vocab_size ? x[i] : kMasked;
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = first + j * kSampleThreads;
      if (i >= r.a.vocab_size) break;
      r.z[i] = __fdiv_rn(v[j] - max, p.temperature);
      max_of_thread = fmaxf(max_of_thread, r.z[i]);
    }
  }
  __syncthreads();
  Cut cut;
  if (p.has_min_p) cut.lowest = p.log_min_p;
  if (p.top_k > 0 && p.top_k < r.a.vocab_size) keep_top_k(r, max_of_thread, cut);
  if (p.top_p < 1.0f) keep_top_p(r, cut);
  const double max_gumbel = -log(-log(1.0 - 0x1p-33));
  double best = gumbel(p.seed, r.length, likeliest);
  int best_id = likeliest;
  for_each_candidate(r, [&](int i) {
    const float z = r.z[i];
    if (z + max_gumbel < best || !cut.keeps(z, i)) return;
    const double score = z + gumbel(p.seed, r.length, i);
    if (score > best || (score == best && i < best_id)) {
      best = score;
      best_id = i;
    }
  });
  for (int d = 16; d > 0; d /= 2) {
    const double other = __shfl_xor_sync(~0u, best, d);
    const int other_id = __shfl_xor_sync(~0u, best_id, d);
    if (other > best || (other == best && other_id < best_id)) {
      best = other;
      best_id = other_id;
    }
  }
  SampleShared& s = r.s;
  if (threadIdx.x % 32 == 0) {
    s.score[threadIdx.x / 32] = best;
    s.id[threadIdx.x / 32] = best_id;
  }
  __syncthreads();
  for (int w = 0; w < kSampleWarps; ++w) {
    if (s.score[w] > best || (s.score[w] == best && s.id[w] < best_id)) {
      best = s.score[w];
      best_id = s.id[w];
    }
  }
  __syncthreads();
  return best_id;
}

// The row's token for every thread, or -RowFaultCode.
__device__ int choose(const Row& r, const float* logits) {
  SampleShared& s = r.s;
  if (threadIdx.x == 0) s.flag = 0;
  __syncthreads();
  float best = kMasked;
  int best_id = INT_MAX;
  bool finite = true;
#pragma unroll 4
  for (int i = threadIdx.x; i < r.a.vocab_size; i += kSampleThreads) {
    const float x = logits[i];
    finite = finite && isfinite(x);
    if (x > best) {
      best = x;
      best_id = i;
    }
  }
  if (!finite) s.flag = 1;
  __syncthreads();
  if (s.flag != 0) return -kRowNotFinite;
  const bool changed = changes_logits(r);
  if (!changed) {
    best_id = block_argmax(best, best_id, s);
  } else {
    adjust(r, logits);
    best = kMasked;
    best_id = INT_MAX;
    for (int i = threadIdx.x; i < r.a.vocab_size; i += kSampleThreads) {
      if (r.z[i] > best) {
        best = r.z[i];
        best_id = i;
      }
    }
    best_id = block_argmax(best, best_id, s);
  }
  if (best_id == INT_MAX) return -kRowNothingAllowed;
  if (r.p.temperature == 0.0f) return best_id;
  return draw(r, changed ? r.z : logits, best_id);
}

__device__ void write_logprobs(const float* logits, int vocab_size, int token, int num_best, int64_t at,
                               const LogprobRows& out, SampleShared& s) {
  float max = kMasked;
  int id = INT_MAX;
  for (int i = threadIdx.x; i < vocab_size; i += kSampleThreads) {
    if (is_better(logits[i], i, max, id)) max = logits[i], id = i;
  }
  block_argmax(max, id, s);
  double sum = 0.0, above = 0.0;
  const float own = logits[token];
  for (int i = threadIdx.x; i < vocab_size; i += kSampleThreads) {
    sum += exact_exp(logits[i] - max);
    above += logits[i] > own ? 1.0 : 0.0;
  }
  const auto log_sum = static_cast<float>(log(block_sum_double(sum, s)));
  const double rank = 1.0 + block_sum_double(above, s);
  int32_t* ids = out.ids + at * (1 + kMaxLogprobs);
  float* values = out.values + at * (1 + kMaxLogprobs);
  if (threadIdx.x == 0) {
    ids[0] = token;
    values[0] = (own - max) - log_sum;
    out.ranks[at] = static_cast<int32_t>(rank);
  }
  float last = INFINITY;
  int last_id = -1;
  for (int n = 0; n < min(num_best, min(kMaxLogprobs, vocab_size)); ++n) {  // the next after (last, last_id)
    float best = kMasked;
    int best_id = INT_MAX;
    for (int i = threadIdx.x; i < vocab_size; i += kSampleThreads) {
      const float x = logits[i];
      if (is_better(last, last_id, x, i) && is_better(x, i, best, best_id)) best = x, best_id = i;
    }
    last_id = block_argmax(best, best_id, s);
    last = best;
    if (threadIdx.x == 0) {
      ids[1 + n] = last_id;
      values[1 + n] = (last - max) - log_sum;
    }
  }
}

__device__ Row make_row(const SampleRows& a, SampleShared& s, int slot, bool with_bitmask) {
  const int i = blockIdx.x;
  const int64_t words = (a.vocab_size + 31) / 32;
  const SlotSampling& p = a.slots.sampling[slot];
  return Row{a,
             s,
             p,
             a.slots.tokens + slot * a.slots.token_stride,
             a.slots.length[slot],
             a.slots.num_prompt_tokens[slot],
             with_bitmask ? a.bitmask + i * words : nullptr,
             p.has_allowed ? a.slots.allowed + slot * words : nullptr,
             a.scratch + int64_t{i} * a.vocab_size,
             a.marks + int64_t{i} * a.vocab_size};
}

__global__ void __launch_bounds__(kSampleThreads) sample_kernel(const __grid_constant__ SampleRows a) {
  __shared__ SampleShared s;
  const int i = blockIdx.x;
  if (i >= *a.num_slices) return;
  const int slot = a.slice_slot[i], first = a.first_logit_row[i], num_rows = a.num_rows[i];
  int accepted = 0, fault = kRowFine;
  for (int j = threadIdx.x; j < a.max_rows; j += kSampleThreads) a.tokens[i * a.max_rows + j] = -1;
  __syncthreads();
  while (accepted < num_rows) {
    const int step_row = a.logit_rows[first + accepted];
    if (a.positions[step_row] < 0) break;
    const Row r = make_row(a, s, slot, accepted == 0 && a.has_bitmask[i]);
    const float* logits = a.logits + int64_t{first + accepted} * a.vocab_size;
    const int token = choose(r, logits);
    if (token < 0) {
      fault = -token;
      break;
    }
    if (r.p.num_logprobs >= 0) {
      write_logprobs(logits, a.vocab_size, token, r.p.num_logprobs, int64_t{i} * a.max_rows + accepted, a.logprobs, s);
    }
    const bool goes_on = accepted + 1 < num_rows && a.token_ids[step_row + 1] == token;
    __syncthreads();
    if (threadIdx.x == 0) {
      a.slots.tokens[slot * a.slots.token_stride + r.length] = token;
      a.slots.length[slot] = r.length + 1;
      a.next_token_ids[step_row] = token;
      a.tokens[i * a.max_rows + accepted] = token;
    }
    __syncthreads();
    ++accepted;
    // The next row was computed with the draft as its token: right if that is what was sampled.
    if (!goes_on) break;
  }
  if (threadIdx.x != 0) return;
  a.slots.num_drafts[slot] = 0;
  a.num_accepted[i] = accepted;
  a.draft_row[i] = a.logit_rows[first + max(accepted - 1, 0)];
  a.fault[i] = fault;
  a.fault_length[i] = a.slots.length[slot];
}

__global__ void __launch_bounds__(kSampleThreads) draft_kernel(const __grid_constant__ SampleRows a) {
  __shared__ SampleShared s;
  const int i = blockIdx.x;
  if (i >= *a.num_slices || a.num_accepted[i] == 0) return;
  const int slot = a.slice_slot[i];
  const int token = choose(make_row(a, s, slot, false), a.logits + int64_t{i} * a.vocab_size);
  if (threadIdx.x != 0 || token < 0) return;
  int32_t& count = a.slots.num_drafts[slot];
  if (count < a.slots.max_drafts) a.slots.drafts[slot * a.slots.max_drafts + count++] = token;
}

__global__ void __launch_bounds__(kSampleThreads) prompt_kernel(const __grid_constant__ PromptLogprobs a) {
  __shared__ SampleShared s;
  const int i = blockIdx.x;
  if (a.target[i] < 0) return;
  write_logprobs(a.logits + int64_t{i} * a.vocab_size, a.vocab_size, a.target[i], a.num_best[i], i, a.out, s);
}

}  // namespace

void sample_rows(const SampleRows& a, cudaStream_t stream) {
  if (a.max_slices > 0) sample_kernel<<<a.max_slices, kSampleThreads, 0, stream>>>(a);
}

void draft_rows(const SampleRows& a, cudaStream_t stream) {
  if (a.max_slices > 0) draft_kernel<<<a.max_slices, kSampleThreads, 0, stream>>>(a);
}

void prompt_logprobs(const PromptLogprobs& a, cudaStream_t stream) {
  if (a.num_rows > 0) prompt_kernel<<<a.num_rows, kSampleThreads, 0, stream>>>(a);
}

}  // namespace manta::backend::cuda
