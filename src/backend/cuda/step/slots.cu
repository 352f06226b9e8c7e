#include "backend/cuda/common.cuh"
#include "backend/cuda/step/slots.h"

namespace manta::backend::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void scatter_kernel(const uint8_t* payload, const Segment* segments) {
  const Segment s = segments[blockIdx.x];
  const auto* from = reinterpret_cast<const uint32_t*>(payload + s.offset);
  auto* to = static_cast<uint32_t*>(s.to);
  for (uint32_t i = threadIdx.x; i < s.bytes / 4; i += kThreads) to[i] = from[i];
}

__device__ int64_t cache_row(const GatherInputs& a, int slot, int position) {
  const int block = position / a.block_size;
  if (block >= a.slots.num_blocks[slot]) return -1;
  return int64_t{a.slots.block_tables[slot * a.slots.max_blocks + block]} * a.block_size + position % a.block_size;
}

__global__ void gather_kernel(const __grid_constant__ GatherInputs a) {
  const int row = blockIdx.x * kThreads + threadIdx.x;
  if (row >= a.num_rows) return;
  const int r = a.row_req[row];
  if (r < 0) return;  // padding: the upload said -1 everywhere
  const int slot = a.req_slot[r];
  if (a.req_first_position[r] < 0) {
    const int j = row - a.req_first_row[r];
    const int length = a.slots.length[slot], position = length - 1 + j;
    // A row without a draft, or whose token would pass the end, is dead: like padding, it is written nowhere and
    // accepted never. The first row is exempt from the second rule, so that every live slot moves on.
    const bool has_token = j <= a.slots.num_drafts[slot];
    const bool fits = position + (j > 0 ? 1 : 0) < a.req_max_seq_len[r];
    const bool live = has_token && fits && cache_row(a, slot, position) >= 0;
    a.positions[row] = live ? position : -1;
    const int32_t token = j == 0 ? a.slots.tokens[slot * a.slots.token_stride + length - 1]
                                 : a.slots.drafts[slot * a.slots.max_drafts + j - 1];
    a.token_ids[row] = live ? token : 0;
  }
  const int position = a.positions[row];
  a.slot_mapping[row] = position < 0 ? -1 : cache_row(a, slot, position);
}

}  // namespace

void scatter(const uint8_t* payload, const Segment* segments, int num_segments, cudaStream_t stream) {
  if (num_segments > 0) scatter_kernel<<<num_segments, kThreads, 0, stream>>>(payload, segments);
}

void gather_inputs(const GatherInputs& a, cudaStream_t stream) {
  if (a.num_rows > 0) gather_kernel<<<(a.num_rows + kThreads - 1) / kThreads, kThreads, 0, stream>>>(a);
}

}  // namespace manta::backend::cuda
