// The GEMM of the cpu backend on every instruction set this machine has: right against double precision, and row r
// alone = row r of many, bit for bit, for every format, thread count and odd size.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "backend/cpu/gemm.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/packed_weights.h"

namespace manta::backend::cpu {
namespace {

float from_bf16(uint16_t x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x) << 16);
}
uint16_t to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<uint16_t>((bits + ((bits >> 16) & 1) + 0x7fff) >> 16);
}
double fp8_value(uint8_t x) {
  const int exponent = x >> 3 & 15, mantissa = x & 7;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return x & 128 ? -magnitude : magnitude;
}

// A stored matrix with the values a test compares with.
struct Stored {
  int n = 0, k = 0;
  std::vector<uint8_t> fp8;
  std::vector<uint16_t> bf16;
  std::vector<float> f32, scales;
  std::vector<double> values;
  WeightView view;
};

Stored make_stored(MatrixFormat format, int n, int k, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  Stored s{n, k, {}, {}, {}, {}, std::vector<double>(static_cast<size_t>(n) * k), {}};
  if (format == MatrixFormat::kFp8) {
    const int rows = (n + 127) / 128, columns = (k + 127) / 128;
    for (int i = 0; i < rows * columns; ++i) s.scales.push_back(std::exp(normal(rng)) * 0.01f);
    for (size_t i = 0; i < s.values.size(); ++i) {
      uint8_t code = static_cast<uint8_t>(rng());
      if ((code & 127) == 127) code = 0;
      s.fp8.push_back(code);
      s.values[i] = fp8_value(code) * s.scales[i / k / 128 * columns + i % k / 128];
    }
    s.view.data = make_tensor(s.fp8.data(), DType::kF8E4M3, {n, k});
    s.view.scale_inv = make_tensor(s.scales.data(), DType::kF32, {rows, columns});
  } else if (format == MatrixFormat::kBf16) {
    for (double& value : s.values) {
      s.bf16.push_back(to_bf16(normal(rng)));
      value = from_bf16(s.bf16.back());
    }
    s.view.data = make_tensor(s.bf16.data(), DType::kBF16, {n, k});
  } else {
    for (double& value : s.values) {
      s.f32.push_back(normal(rng));
      value = s.f32.back();
    }
    s.view.data = make_tensor(s.f32.data(), DType::kF32, {n, k});
  }
  return s;
}

PackedMatrix pack(const Stored& s, MatrixFormat format) {
  const PackedMatrix::Source source{&s.view, 0, s.n, false};
  auto packed = format == MatrixFormat::kF32 ? PackedMatrix::pack_f32(source) : PackedMatrix::pack(source);
  EXPECT_TRUE(packed.ok()) << packed.error().message;
  EXPECT_EQ(packed->format(), format);
  return std::move(packed).value();
}

// Rows of A at an odd stride, everything that must not be read NaN.
struct Rows {
  Rows(MatrixFormat format, int rows, int k, uint32_t seed) : lda(k + k % 2 + 3 + (k % 2 ? 0 : 1)) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    f32.assign(rows * lda, std::numeric_limits<float>::quiet_NaN());
    bf16.assign(rows * lda, 0x7fc0);
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < k; ++i) {
        const float x = normal(rng);
        f32[r * lda + i] = format == MatrixFormat::kF32 ? x : from_bf16(to_bf16(x));
        bf16[r * lda + i] = to_bf16(x);
      }
      if (k % 2) bf16[r * lda + k] = 0;
    }
  }
  int64_t lda;
  std::vector<float> f32;
  std::vector<uint16_t> bf16;
};

std::vector<float> multiply(const Kernels& kernels, host::ThreadTeam& team, const PackedMatrix& w, const Rows& a,
                            int first_row, int rows) {
  Gemm gemm(kernels, team);
  std::vector<float> out(static_cast<size_t>(rows) * w.n(), std::numeric_limits<float>::quiet_NaN());
  GemmProblem p;
  p.weight = &w;
  p.a = w.format() == MatrixFormat::kF32 ? static_cast<const void*>(a.f32.data() + first_row * a.lda)
                                         : a.bf16.data() + first_row * a.lda;
  p.lda = a.lda;
  p.rows = rows;
  p.out_f32 = out.data();
  p.ldo = w.n();
  gemm.run({&p, 1});
  return out;
}

class CpuGemm : public testing::TestWithParam<const Kernels*> {};

void expect_right(const std::vector<float>& out, const Stored& s, const Rows& a, int rows) {
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < s.n; ++j) {
      double sum = 0, magnitude = 0;
      for (int i = 0; i < s.k; ++i) {
        const double x = a.f32[r * a.lda + i] * s.values[static_cast<size_t>(j) * s.k + i];
        sum += x;
        magnitude += std::abs(x);
      }
      ASSERT_NEAR(out[r * s.n + j], sum, magnitude * 2e-6 + 1e-20) << "row " << r << " column " << j;
    }
  }
}

TEST_P(CpuGemm, IsRightAndARowIsTheSameAloneAndAmongMany) {
  const int sizes[] = {1, 7, 16, 63, 64, 65, 127, 128, 129, 300};
  host::ThreadTeam one(1), two(2);
  uint32_t seed = 1;
  for (const MatrixFormat format : {MatrixFormat::kBf16, MatrixFormat::kFp8, MatrixFormat::kF32}) {
    for (const int n : {1, 15, 64, 65, 130}) {
      for (const int k : sizes) {
        const Stored s = make_stored(format, n, k, ++seed);
        const PackedMatrix w = pack(s, format);
        const int rows = 11;
        const Rows a(format, rows, k, ++seed);
        const auto all = multiply(*GetParam(), one, w, a, 0, rows);
        ASSERT_NO_FATAL_FAILURE(expect_right(all, s, a, rows)) << "n " << n << " k " << k;
        EXPECT_EQ(0, std::memcmp(all.data(), multiply(*GetParam(), two, w, a, 0, rows).data(), all.size() * 4));
        for (int count = 1; count < 8; ++count) {
          const auto some = multiply(*GetParam(), one, w, a, 2, count);
          ASSERT_EQ(0, std::memcmp(&all[2 * n], some.data(), some.size() * 4))
              << "format " << int(format) << " n " << n << " k " << k << " rows " << count;
        }
      }
    }
  }
}

TEST_P(CpuGemm, RowBlocksAndThreadsDoNotShow) {
  host::ThreadTeam one(1), two(2);
  for (const MatrixFormat format : {MatrixFormat::kBf16, MatrixFormat::kFp8, MatrixFormat::kF32}) {
    const Stored s = make_stored(format, 200, 640, 5);
    const PackedMatrix w = pack(s, format);
    const int rows = 209;
    const Rows a(format, rows, s.k, 6);
    const auto all = multiply(*GetParam(), two, w, a, 0, rows);
    for (const int r : {0, 1, 95, 96, 97, 191, 192, 208}) {
      const auto alone = multiply(*GetParam(), one, w, a, r, 1);
      EXPECT_EQ(0, std::memcmp(&all[r * s.n], alone.data(), alone.size() * 4)) << "row " << r;
    }
  }
}

// Problems of uneven sizes, empty ones among them, in one call; gate and up fused.
TEST_P(CpuGemm, GroupsAndFusedSilu) {
  host::ThreadTeam two(2);
  Gemm gemm(*GetParam(), two);
  const int d = 96, inner = 71;
  std::vector<Stored> stored;
  std::vector<PackedMatrix> packed;
  for (int i = 0; i < 8; ++i) stored.push_back(make_stored(MatrixFormat::kBf16, inner, d, 20 + i));
  for (const Stored& s : stored) packed.push_back(pack(s, MatrixFormat::kBf16));
  const int counts[] = {3, 0, 130, 1};
  const Rows a(MatrixFormat::kBf16, 134, d, 9);
  const int64_t ldo = inner + 1;
  std::vector<uint16_t> out(134 * ldo, 0x7fc0);
  std::vector<GemmProblem> problems;
  for (int i = 0, row = 0; i < 4; row += counts[i++]) {
    GemmProblem p;
    p.weight = &packed[2 * i];
    p.up = &packed[2 * i + 1];
    p.a = a.bf16.data() + row * a.lda;
    p.lda = a.lda;
    p.rows = counts[i];
    p.out_bf16 = out.data() + row * ldo;
    p.ldo = ldo;
    p.pad_pair = true;
    problems.push_back(p);
  }
  gemm.run(problems);
  host::ThreadTeam one(1);
  for (int i = 0, row = 0; i < 4; row += counts[i++]) {
    if (counts[i] == 0) continue;
    const auto gate = multiply(*GetParam(), one, packed[2 * i], a, row, counts[i]);
    const auto up = multiply(*GetParam(), one, packed[2 * i + 1], a, row, counts[i]);
    for (int r = 0; r < counts[i]; ++r) {
      for (int j = 0; j < inner; ++j) {
        const float g = gate[r * inner + j];
        const double expected = g / (1 + std::exp(-static_cast<double>(g))) * up[r * inner + j];
        ASSERT_NEAR(from_bf16(out[(row + r) * ldo + j]), expected, std::abs(expected) / 250 + 1e-6);
      }
      EXPECT_EQ(out[(row + r) * ldo + inner], 0) << "the pad that the next GEMM reads";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, CpuGemm, testing::ValuesIn([] {
                           const TargetList list = available_kernels();
                           return std::vector<const Kernels*>(list.tables, list.tables + list.count);
                         }()),
                         [](const auto& info) { return std::string(info.param->name); });

TEST(PackedMatrix, Fp8StaysFp8OnlyWhereScaleBlocksFitThePanels) {
  const Stored s = make_stored(MatrixFormat::kFp8, 320, 256, 3);
  const auto format = [&](int first, int rows, bool transposed) {
    auto packed = PackedMatrix::pack({&s.view, first, rows, transposed});
    EXPECT_TRUE(packed.ok());
    return packed->format();
  };
  EXPECT_EQ(format(0, 320, false), MatrixFormat::kFp8);
  EXPECT_EQ(format(64, 192, false), MatrixFormat::kFp8);
  EXPECT_EQ(format(128, 128, true), MatrixFormat::kFp8);
  EXPECT_EQ(format(32, 192, false), MatrixFormat::kBf16);
  EXPECT_EQ(format(64, 128, true), MatrixFormat::kBf16);
}

TEST(PackedMatrix, RefusesWhatItCannotHold) {
  Stored s = make_stored(MatrixFormat::kFp8, 200, 130, 3);
  s.view.scale_inv.shape[0] = 1;
  EXPECT_FALSE(PackedMatrix::pack({&s.view, 0, 200, false}).ok());
  s.view.data.dtype = DType::kI32;
  EXPECT_FALSE(pack_weight(s.view, WeightRole::kLinear, {}).ok());
  const Stored kv = make_stored(MatrixFormat::kBf16, 100, 32, 3);
  EXPECT_FALSE(pack_weight(kv.view, WeightRole::kKvUp, {4, 16, 10}).ok()) << "104 rows were due";
}

}  // namespace
}  // namespace manta::backend::cpu
