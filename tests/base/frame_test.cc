#include "base/frame.h"

#include <gtest/gtest.h>

#include <cstring>

namespace manta {
namespace {

std::vector<Frame> decode_all(FrameDecoder& decoder) {
  std::vector<Frame> frames;
  for (;;) {
    auto next = decoder.next();
    EXPECT_TRUE(next.ok()) << next.error().message;
    if (!next.ok() || !next->has_value()) return frames;
    frames.push_back(std::move(**next));
  }
}

std::string error_of(std::string bytes) {
  FrameDecoder decoder;
  decoder.feed(bytes);
  const auto next = decoder.next();
  return next.ok() ? "(no error)" : next.error().message;
}

template <typename T>
std::string with_field(size_t offset, T value) {
  std::string bytes = encode_frame(FrameKind::kSubmit, Epoch{7}, "abc");
  std::memcpy(bytes.data() + offset, &value, sizeof value);
  return bytes;
}

TEST(Frame, ComesBackAsItWasSent) {
  FrameDecoder decoder;
  decoder.feed(encode_frame(FrameKind::kOutputs, Epoch{0xfedcba9876543210}, "payload"));
  const auto frames = decode_all(decoder);
  ASSERT_EQ(frames.size(), 1u);
  EXPECT_EQ(frames[0].kind, FrameKind::kOutputs);
  EXPECT_EQ(frames[0].epoch, Epoch{0xfedcba9876543210});
  EXPECT_EQ(frames[0].payload, "payload");
}

TEST(Frame, HeaderBytesAreTheProtocol) {
  const std::string bytes = encode_frame(FrameKind::kSubmit, Epoch{2}, "xy");
  ASSERT_EQ(bytes.size(), kFrameHeaderBytes + 2);
  EXPECT_EQ(bytes.substr(0, 4), "MNTA");
  EXPECT_EQ(bytes[4], kProtocolVersion);
  EXPECT_EQ(bytes[6], 16);  // kSubmit
  EXPECT_EQ(bytes[8], 2);
  EXPECT_EQ(bytes[16], 2);
}

TEST(Frame, AnyCutOfTheStreamGivesTheSameFrames) {
  std::string stream;
  for (int i = 0; i < 20; ++i) stream += encode_frame(FrameKind::kAbort, Epoch{1}, std::string(i * 7, 'a' + i));
  for (size_t cut = 1; cut < 60; ++cut) {
    FrameDecoder decoder;
    std::vector<Frame> frames;
    for (size_t at = 0; at < stream.size(); at += cut) {
      decoder.feed(stream.substr(at, cut));
      for (Frame& f : decode_all(decoder)) frames.push_back(std::move(f));
    }
    ASSERT_EQ(frames.size(), 20u) << "cut " << cut;
    for (int i = 0; i < 20; ++i) EXPECT_EQ(frames[i].payload, std::string(i * 7, 'a' + i));
  }
}

TEST(Frame, NamesTheFieldTheValueAndTheBound) {
  EXPECT_EQ(error_of("HTTP/1.1 400 Bad Request"), "frame magic 0x50545448: expected 0x41544e4d");
  EXPECT_EQ(error_of(with_field<uint16_t>(4, 9)),
            "protocol version 9: this process speaks 1; run the same manta on every node");
  EXPECT_EQ(error_of(with_field<uint16_t>(6, 0)), "frame kind 0: not one of this protocol");
  EXPECT_EQ(error_of(with_field<uint16_t>(6, 60000)), "frame kind 60000: not one of this protocol");
  EXPECT_EQ(error_of(with_field<uint32_t>(16, kMaxPayloadBytes + 1)),
            "frame payload of 16777217 bytes: at most 16777216");
  EXPECT_EQ(error_of(with_field<uint32_t>(20, 1)), "frame reserved field 1: must be 0");
}

TEST(Frame, HugeLengthIsRefusedFromTheHeaderAlone) {
  FrameDecoder decoder;
  decoder.feed(with_field<uint32_t>(16, 0xffffffff).substr(0, kFrameHeaderBytes));
  EXPECT_FALSE(decoder.next().ok());
}

}  // namespace
}  // namespace manta
