// Row-wise kernels of the residual stream: add + RMSNorm (+ quantise), embedding rows, merge, quantise. Rows are
// multiples of 8 values that start at multiples of 16 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

namespace manta::backend::cuda {

// For row i: x = hidden[source row] (+ residual[source row]); residual = x where asked for; y = x / rms(x) * gain, in
// float32 from the unrounded sum. Outputs that are null are not made. FP8: e4m3 with a scale per 128 columns, the
// scales of one group of columns side by side, as the copy engine takes them.
struct AddRmsNorm {
  const __nv_bfloat16* hidden = nullptr;  // [*, d]
  int64_t hidden_stride = 0;
  __nv_bfloat16* residual = nullptr;     // [*, d], null: none
  bool add_residual = false;             // else residual is only written
  const int32_t* source_rows = nullptr;  // [num_rows], null: row i; negative counts as 0
  const float* gain = nullptr;           // [d]
  float eps = 0;
  int num_rows = 0;
  int d = 0;
  __nv_bfloat16* out = nullptr;      // [num_rows, out_stride]
  __nv_bfloat16* out_low = nullptr;  // what rounding took from out, rounded itself; same stride
  int64_t out_stride = 0;
  uint8_t* out_fp8 = nullptr;  // [num_rows, d]
  float* out_scale = nullptr;  // [ceil(d / 128), scale_stride]
  int64_t scale_stride = 0;
  bool quantize_out = false;  // FP8 of what stands in out, else of the unrounded values
  bool ue8m0 = false;
};
void add_rms_norm(const AddRmsNorm& a, cudaStream_t stream);

// Packed rows of a window of an expert batch: row i is row first + i % plane_rows of plane i / plane_rows (plane_rows
// 0: row first + i of all). Rows beyond `counts` are left alone: the planes' counts, or one count of all; null: all are
// there.
struct WindowRows {
  int64_t first = 0, plane_rows = 0;
  const int32_t* counts = nullptr;
};

// q [num_rows, d], scale [ceil(d/128), scale_stride] = x; `plane` rows of x between two planes of the window.
struct QuantizeRows {
  const __nv_bfloat16* x = nullptr;
  int64_t x_stride = 0;
  int64_t num_rows = 0;
  int d = 0;
  bool ue8m0 = false;
  WindowRows window;
  int64_t plane = 0;
  uint8_t* q = nullptr;
  float* scale = nullptr;
  int64_t scale_stride = 0;
};
void quantize_rows(const QuantizeRows& a, cudaStream_t stream);

// out [rows, d] = table [ids[row], d]; a negative id counts as 0
void embed_rows(const __nv_bfloat16* table, const int32_t* ids, int num_rows, int d, __nv_bfloat16* out,
                cudaStream_t stream);

// hidden = combined + shared (null: combined alone); n values.
void merge_rows(const float* combined, const __nv_bfloat16* shared, __nv_bfloat16* hidden, int64_t n,
                cudaStream_t stream);

// out [rows, n] = silu(in [rows, 0:n]) * in [rows, n:2n], in bf16 or quantised like quantize_rows.
struct SiluMultiply {
  const __nv_bfloat16* in = nullptr;
  int64_t num_rows = 0;
  int n = 0;
  WindowRows window;
  __nv_bfloat16* out = nullptr;
  uint8_t* out_fp8 = nullptr;
  float* out_scale = nullptr;
  int64_t scale_stride = 0;
  bool ue8m0 = false;
};
void silu_multiply(const SiluMultiply& a, cudaStream_t stream);

}  // namespace manta::backend::cuda
