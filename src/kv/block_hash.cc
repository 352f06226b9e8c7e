#include "kv/block_hash.h"

#include <bit>
#include <cstring>
#include <random>

namespace manta::kv {
namespace {

class SipHash128 {
 public:
  SipHash128(uint64_t key0, uint64_t key1)
      : v0_(0x736f6d6570736575ULL ^ key0),
        v1_(0x646f72616e646f6dULL ^ key1 ^ 0xee),  // 0xee: the 128-bit variant
        v2_(0x6c7967656e657261ULL ^ key0),
        v3_(0x7465646279746573ULL ^ key1) {}

  void word(uint64_t m) {
    v3_ ^= m;
    round();
    round();
    v0_ ^= m;
  }

  // All bytes of a message after its whole words, and its length.
  BlockHash finish(const void* tail, size_t num_tail_bytes, size_t num_bytes) {
    uint64_t last = 0;
    std::memcpy(&last, tail, num_tail_bytes);
    word(last | static_cast<uint64_t>(num_bytes) << 56);
    v2_ ^= 0xee;
    BlockHash out;
    out.low = squeeze();
    v1_ ^= 0xdd;
    out.high = squeeze();
    return out;
  }

 private:
  uint64_t squeeze() {
    for (int i = 0; i < 4; ++i) round();
    return v0_ ^ v1_ ^ v2_ ^ v3_;
  }

  void round() {
    v0_ += v1_;
    v1_ = std::rotl(v1_, 13) ^ v0_;
    v0_ = std::rotl(v0_, 32);
    v2_ += v3_;
    v3_ = std::rotl(v3_, 16) ^ v2_;
    v0_ += v3_;
    v3_ = std::rotl(v3_, 21) ^ v0_;
    v2_ += v1_;
    v1_ = std::rotl(v1_, 17) ^ v2_;
    v2_ = std::rotl(v2_, 32);
  }

  uint64_t v0_, v1_, v2_, v3_;
};

BlockHash hash_bytes(SipHash128 sip, std::string_view bytes, size_t num_bytes_before) {
  const size_t num_words = bytes.size() / 8;
  for (size_t i = 0; i < num_words; ++i) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + i * 8, 8);
    sip.word(word);
  }
  return sip.finish(bytes.data() + num_words * 8, bytes.size() % 8, num_bytes_before + bytes.size());
}

uint64_t random_word() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

}  // namespace

BlockHasher::BlockHasher() : key_{random_word(), random_word()} {}

BlockHash BlockHasher::root(std::string_view cache_salt) const {
  return hash_bytes(SipHash128(key_[0], key_[1]), cache_salt, 0);
}

BlockHash BlockHasher::next(const BlockHash& parent, std::span<const TokenId> tokens) const {
  SipHash128 sip(key_[0], key_[1]);
  sip.word(parent.low);
  sip.word(parent.high);
  return hash_bytes(sip, {reinterpret_cast<const char*>(tokens.data()), tokens.size_bytes()}, 16);
}

}  // namespace manta::kv
