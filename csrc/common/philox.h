// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011. A block of 128 random bits is a pure function of a 128-bit counter and a 64-bit key, so whoever
// knows a sample's number can make its bits: no state, no order, no difference between devices or thread counts.
#pragma once

#include <cstdint>

#include "macros.h"

namespace zx {

struct PhiloxBlock {
  uint32_t word[4];
};

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

ZX_HD PhiloxBlock philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kPhiloxMultiplier0) * c0;
    const uint64_t p1 = static_cast<uint64_t>(kPhiloxMultiplier1) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

// High 64 bits of the product: maps a 64-bit draw to [0, bound) so that every outcome has a probability within 2^-64 of
// 1/bound (Lemire 2019, without the rejection that would remove even that).
ZX_HD uint64_t mulhi64(uint64_t a, uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  __extension__ typedef unsigned __int128 uint128;
  return static_cast<uint64_t>((static_cast<uint128>(a) * b) >> 64);
#endif
}

ZX_HD uint32_t mulhi32(uint32_t a, uint32_t b) { return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32); }

// What the bits of a sample are for. The numbers are part of the definition of every sample: they never change.
enum class Stream : uint32_t {
  kNegative = 0,
  kSecondPositive = 1,
  kReplacementPositive = 2,
  kPermutation = 3,
  kAlias = 4,
  kCandidate = 5,
  kNodeDropout = 6,
};

// Key of a run of samples: the seed is Philox's key, the epoch one word of its counter.
struct SampleKey {
  uint32_t seed_lo, seed_hi, epoch;
};

ZX_HD SampleKey make_key(uint64_t seed, uint32_t epoch) {
  return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), epoch};
}

// The two 64-bit draws of one Philox block.
struct Draws {
  uint64_t first, second;
};

// Counter (sample lo, sample hi, epoch, stream << 24 | j << 8 | attempt); j < 65536 numbers a sample's negatives,
// attempt < 256 its tries.
ZX_HD Draws draws(SampleKey key, uint64_t sample, Stream stream, uint32_t j, uint32_t attempt) {
  const PhiloxBlock b = philox4x32(static_cast<uint32_t>(sample), static_cast<uint32_t>(sample >> 32), key.epoch,
                                   static_cast<uint32_t>(stream) << 24 | j << 8 | attempt, key.seed_lo, key.seed_hi);
  return {b.word[0] | static_cast<uint64_t>(b.word[1]) << 32, b.word[2] | static_cast<uint64_t>(b.word[3]) << 32};
}

}  // namespace zx
