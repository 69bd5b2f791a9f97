// Philox (common/philox.h) for loops that the compiler makes SIMD code of.
#pragma once

#include "common/philox.h"

namespace zx::cpu {

// philox4x32 of a counter, in place, in lanes of 64 bits that hold 32: the widening multiplication of SIMD units.
ZX_HD void philox_lane(uint64_t& c0, uint64_t& c1, uint64_t& c2, uint64_t& c3, uint32_t k0, uint32_t k1) {
  constexpr uint64_t kLow = 0xffffffffu;
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = (c0 & kLow) * kPhiloxMultiplier0;
    const uint64_t p1 = (c2 & kLow) * kPhiloxMultiplier1;
    c0 = (p1 >> 32) ^ c1 ^ k0;
    c2 = (p0 >> 32) ^ c3 ^ k1;
    c1 = p1 & kLow;
    c3 = p0 & kLow;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
}

}  // namespace zx::cpu
