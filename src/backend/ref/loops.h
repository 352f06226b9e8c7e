// The arithmetic of the reference, as plain loops over float32. Two rules make it a specification:
//   - every output is a sum in the order of k, one rounded product and one rounded addition at a time (no fused
//     multiply-add, no partial sums), so its bits depend on its own inputs only: not on the number of rows, on
//     neighbours, on threads or on the width of the vectors that the compiler picks;
//   - what is vectorised is the axis of outputs, which is why weights are packed [in, out].
#pragma once

#include <cstdint>

namespace manta::backend::ref {

// c [m, n] += a [m, k] x b [k, n]; row strides lda, ldb, ldc in floats.
void multiply_add(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t m, int64_t n,
                  int64_t k);

// out [n] = x / sqrt(mean(x^2) + eps) * gain. The mean is taken in double. out may be x.
void rms_norm(const float* x, const float* gain, float eps, int64_t n, float* out);

// gate [n] = silu(gate) * up
void silu_multiply(float* gate, const float* up, int64_t n);

}  // namespace manta::backend::ref
