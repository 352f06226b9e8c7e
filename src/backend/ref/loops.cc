#include "backend/ref/loops.h"

#include <cmath>

// One build for each vector width, picked when the program is loaded. The results are the same, only the speed differs.
// Sanitizers set up too late for the resolver that picks.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && !defined(__SANITIZE_THREAD__) && \
    !defined(__SANITIZE_ADDRESS__)
#define MANTA_REF_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MANTA_REF_CLONES
#endif

namespace manta::backend::ref {
namespace {

constexpr int kRows = 4;   // rows and
constexpr int kCols = 32;  // columns of c that are summed in registers

template <int kM>
inline __attribute__((always_inline)) void tile(const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                                                int64_t ldc, int64_t k) {
  float sum[kM][kCols];
  for (int i = 0; i < kM; ++i) {
    for (int j = 0; j < kCols; ++j) sum[i][j] = c[i * ldc + j];
  }
  for (int64_t p = 0; p < k; ++p) {
    for (int i = 0; i < kM; ++i) {
      const float x = a[i * lda + p];
      for (int j = 0; j < kCols; ++j) sum[i][j] += x * b[p * ldb + j];
    }
  }
  for (int i = 0; i < kM; ++i) {
    for (int j = 0; j < kCols; ++j) c[i * ldc + j] = sum[i][j];
  }
}

// The last columns, fewer than kCols: the same sums, one row at a time.
inline __attribute__((always_inline)) void narrow_tile(const float* a, const float* b, int64_t ldb, float* c, int64_t n,
                                                       int64_t k) {
  for (int64_t p = 0; p < k; ++p) {
    const float x = a[p];
    for (int64_t j = 0; j < n; ++j) c[j] += x * b[p * ldb + j];
  }
}

}  // namespace

MANTA_REF_CLONES void multiply_add(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
                                   int64_t m, int64_t n, int64_t k) {
  int64_t j = 0;
  for (; j + kCols <= n; j += kCols) {
    int64_t i = 0;
    for (; i + kRows <= m; i += kRows) tile<kRows>(a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc, k);
    for (; i < m; ++i) tile<1>(a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc, k);
  }
  if (j == n) return;
  for (int64_t i = 0; i < m; ++i) narrow_tile(a + i * lda, b + j, ldb, c + i * ldc + j, n - j, k);
}

void rms_norm(const float* x, const float* gain, float eps, int64_t n, float* out) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  const auto scale = static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(n) + eps));
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * gain[i];
}

void silu_multiply(float* gate, const float* up, int64_t n) {
  for (int64_t i = 0; i < n; ++i) gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
}

}  // namespace manta::backend::ref
