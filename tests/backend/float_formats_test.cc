#include "backend/host/float_formats.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace manta::backend::host {
namespace {

using ::testing::HasSubstr;

TEST(E4m3, KnownValues) {
  EXPECT_EQ(from_e4m3(0x00), 0.0f);
  EXPECT_EQ(from_e4m3(0x01), 0x1p-9f);  // smallest subnormal
  EXPECT_EQ(from_e4m3(0x08), 0x1p-6f);  // smallest normal
  EXPECT_EQ(from_e4m3(0x38), 1.0f);
  EXPECT_EQ(from_e4m3(0x7e), 448.0f);
  EXPECT_EQ(from_e4m3(0xfe), -448.0f);
  EXPECT_TRUE(std::isnan(from_e4m3(0x7f)));
  EXPECT_TRUE(std::isnan(from_e4m3(0xff)));
}

TEST(E4m3, RoundsToTheNearestValueTiesToEven) {
  std::vector<float> values;  // not negative, ascending; the index is the code
  for (int code = 0; code <= 0x7e; ++code) values.push_back(from_e4m3(static_cast<uint8_t>(code)));
  for (size_t i = 0; i + 1 < values.size(); ++i) {
    EXPECT_EQ(round_to_e4m3(values[i]), values[i]);
    const float middle = (values[i] + values[i + 1]) / 2, even = values[i % 2 == 0 ? i : i + 1];
    EXPECT_EQ(round_to_e4m3(middle), even) << middle;
    EXPECT_EQ(round_to_e4m3(-middle), -even);
    EXPECT_EQ(round_to_e4m3(std::nextafter(middle, 0.0f)), values[i]);
    EXPECT_EQ(round_to_e4m3(std::nextafter(middle, 500.0f)), values[i + 1]);
  }
  EXPECT_EQ(round_to_e4m3(1e30f), 448.0f);
  EXPECT_EQ(round_to_e4m3(-std::numeric_limits<float>::infinity()), -448.0f);
  EXPECT_TRUE(std::isnan(round_to_e4m3(std::numeric_limits<float>::quiet_NaN())));
}

TEST(Bf16, RoundsToNearestEvenAndKeepsNaN) {
  EXPECT_EQ(from_bf16(to_bf16(1.0f)), 1.0f);
  EXPECT_EQ(from_bf16(to_bf16(1.0f + 0x1p-8f)), 1.0f);                // tie, to even
  EXPECT_EQ(from_bf16(to_bf16(1.0f + 3 * 0x1p-8f)), 1.0f + 0x1p-6f);  // tie, to even
  EXPECT_EQ(from_bf16(to_bf16(1.0f + 0x1p-8f + 0x1p-20f)), 1.0f + 0x1p-7f);
  EXPECT_EQ(from_bf16(to_bf16(-std::numeric_limits<float>::infinity())), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(from_bf16(to_bf16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(F16, KnownValues) {
  EXPECT_EQ(from_f16(0x3c00), 1.0f);
  EXPECT_EQ(from_f16(0x0001), 0x1p-24f);
  EXPECT_EQ(from_f16(0xfbff), -65504.0f);
  EXPECT_EQ(from_f16(0x7c00), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(from_f16(0x7c01)));
}

TEST(QuantizeGroup, ScaleIsAmaxOver448) {
  std::mt19937 rng(3);
  std::normal_distribution<float> normal;
  std::vector<float> x(128), y(128), z(128);
  for (float& v : x) v = normal(rng);
  x[17] = -6.5f;
  quantize_group(x.data(), 128, false, y.data());
  EXPECT_NEAR(y[17], -6.5f, 1e-6);
  quantize_group(x.data(), 128, true, z.data());
  const float power = 0x1p-6f;  // 6.5 / 448 = 0.0145, rounded up to 2^-6
  for (int i = 0; i < 128; ++i) {
    EXPECT_EQ(y[i], round_to_e4m3(x[i] / (6.5f / 448)) * (6.5f / 448));
    EXPECT_EQ(z[i], round_to_e4m3(x[i] / power) * power);
  }
  const float exact[2] = {448.0f * 0x1p-6f, 1.0f};  // the scale is a power of two already
  quantize_group(exact, 2, true, y.data());
  EXPECT_EQ(y[0], exact[0]);
  EXPECT_EQ(y[1], 1.0f);
}

TEST(QuantizeGroup, ZerosStayZero) {
  std::vector<float> x(5, 0.0f), y(5, 1.0f);
  quantize_group(x.data(), 5, false, y.data());
  EXPECT_THAT(y, ::testing::Each(0.0f));
  quantize_group(x.data(), 5, true, x.data());
  EXPECT_THAT(x, ::testing::Each(0.0f));
}

TEST(ToF32, Fp8BlocksTimesTheirScale) {
  // 130 x 129: four blocks, three of them cut.
  std::vector<uint8_t> bytes(130 * 129, 0x38);
  std::vector<float> scales = {1, 2, 3, 4}, out(bytes.size());
  const WeightView w = {make_tensor(bytes.data(), DType::kF8E4M3, {130, 129}),
                        make_tensor(scales.data(), DType::kF32, {2, 2})};
  ASSERT_TRUE(to_f32(w, out.data()).ok());
  EXPECT_EQ(out[127 * 129 + 127], 1);
  EXPECT_EQ(out[127 * 129 + 128], 2);
  EXPECT_EQ(out[128 * 129 + 127], 3);
  EXPECT_EQ(out[129 * 129 + 128], 4);
}

TEST(ToF32, SaysWhatIsWrong) {
  std::vector<uint8_t> bytes(256 * 256);
  std::vector<float> scales(8), out(bytes.size());
  const Tensor data = make_tensor(bytes.data(), DType::kF8E4M3, {256, 256});
  EXPECT_THAT(to_f32({data, {}}, out.data()).error().message,
              HasSubstr("needs weight_scale_inv F32[2, 2], found none"));
  EXPECT_THAT(to_f32({data, make_tensor(scales.data(), DType::kF32, {2, 4})}, out.data()).error().message,
              HasSubstr("found F32[2, 4]"));
  EXPECT_THAT(to_f32({make_tensor(bytes.data(), DType::kI64, {4}), {}}, out.data()).error().message,
              HasSubstr("I64[4]: weights are F32"));
}

}  // namespace
}  // namespace manta::backend::host
